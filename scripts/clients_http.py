"""httpx as a browser is: connections kept, ranges, cookies, many requests at once, over HTTP/1.1 and HTTP/2
(scripts/clients)."""

import asyncio
import hashlib
import ssl
import uuid

import httpx

from clients_kit import NOISE, Place, check

EACH = ["HTTP/1.1", "HTTP/2"]
LIKE_A_BROWSER = {
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "accept-language": "de,en-US;q=0.7,en;q=0.3",
    "accept-encoding": "gzip, deflate",
    "upgrade-insecure-requests": "1",
    "sec-fetch-dest": "document",
    "sec-fetch-mode": "navigate",
    "sec-fetch-site": "none",
    "sec-fetch-user": "?1",
    "priority": "u=0, i",
}


def client(place: Place, version: str, connections=1) -> httpx.AsyncClient:
    """In cleartext HTTP/2 is with prior knowledge."""
    two = version == "HTTP/2"
    return httpx.AsyncClient(
        base_url=place.url,
        http1=not two,
        http2=two,
        verify=ssl.create_default_context(cafile=place.ca),
        headers=LIKE_A_BROWSER,
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        timeout=20,
        trust_env=False,
    )


def connection_of(answer: httpx.Response):
    """Which of the client's sockets it came by."""
    return answer.extensions["network_stream"].get_extra_info("client_addr")


@check("httpx keeps its connection through swaps", each=EACH)
async def kept(place, version):
    async with client(place, version) as browser:
        used = set()
        for turn in range(3):
            for path in ("/hello", "/h1/echo", "/h2c/page", "/h2/echo", "/auto/echo", "/files/small.txt", "/files/", "/none"):
                answer = await browser.get(path)
                assert answer.status_code == (404 if path == "/none" else 200), (path, answer)
                assert answer.http_version == version, (path, answer)
                used.add(connection_of(answer))
            await place.swaps.more_async(1)
        assert len(used) == 1, f"{len(used)} connections"


@check("httpx ranges: a file in pieces, If-Range, several, wrong ones", each=EACH)
async def ranges(place, version):
    async with client(place, version) as browser:
        url = "/files/noise.bin"
        whole = await browser.head(url)
        assert whole.headers["accept-ranges"] == "bytes" and int(whole.headers["content-length"]) == len(NOISE)
        tag, got = whole.headers["etag"], b""
        step = 400_000
        while len(got) < len(NOISE):
            wanted = {"range": f"bytes={len(got)}-{len(got) + step - 1}", "if-range": tag}
            piece = await browser.get(url, headers=wanted)
            end = min(len(got) + step, len(NOISE))
            assert piece.status_code == 206 and piece.headers["content-range"] == f"bytes {len(got)}-{end - 1}/{len(NOISE)}"
            got += piece.content
        assert got == NOISE
        changed = await browser.get(url, headers={"range": "bytes=0-9", "if-range": '"other"'})
        assert changed.status_code == 200 and changed.content == NOISE
        several = await browser.get(url, headers={"range": "bytes=0-1,100-104,-3"})
        assert several.status_code == 206 and several.headers["content-type"].startswith("multipart/byteranges; boundary=")
        assert several.content.count(b"Content-Range: ") + several.content.count(b"content-range: ") == 3
        beyond = await browser.get(url, headers={"range": f"bytes={len(NOISE)}-"})
        assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{len(NOISE)}"
        assert (await browser.get(url, headers={"range": "lines=1-2"})).status_code == 200


@check("httpx asks again only for what changed", each=EACH)
async def conditional(place, version):
    async with client(place, version) as browser:
        first = await browser.get("/files/")
        assert first.text == "<h1>home</h1>\n" and first.headers["cache-control"] == "max-age=60", first.headers
        assert first.headers["content-type"].startswith("text/html"), first.headers
        for field, value in (("if-none-match", first.headers["etag"]), ("if-modified-since", first.headers["last-modified"])):
            again = await browser.get("/files/", headers={field: value})
            assert again.status_code == 304 and not again.content, again
            assert again.headers["etag"] == first.headers["etag"], again.headers
        assert (await browser.get("/files/", headers={"if-none-match": '"other"'})).status_code == 200


@check("httpx cookies, both ways", each=EACH)
async def cookies(place, version):
    for upstream in ("h1", "h2c", "h2"):
        async with client(place, version) as browser:
            answer = await browser.get(f"/{upstream}/cookies")
            assert len(answer.headers.get_list("set-cookie")) == 2, answer.headers
            assert dict(browser.cookies) == {"first": "1", "second": "a=b"}, browser.cookies
            told = (await browser.get(f"/{upstream}/echo")).json()
            sent = sorted(pair for field in told["fields"]["cookie"] for pair in field.split("; "))
            assert sent == ["first=1", "second=a=b"], told


@check("httpx, 200 requests at once", each=EACH)
async def at_once(place, version):
    async with client(place, version, connections=1 if version == "HTTP/2" else 20) as browser:

        async def one(number):
            upstream = ("h1", "h2c", "h2", "auto")[number % 4]
            if number % 3 == 0:
                body = NOISE[number : number + 20_000]
                told = (await browser.post(f"/{upstream}/echo?{number}", content=body)).json()
                assert told["sha256"] == hashlib.sha256(body).hexdigest(), told
            elif number % 3 == 1:
                answer = await browser.get(f"/{upstream}/noise?n={number * 100}")
                assert answer.content == NOISE[: number * 100], len(answer.content)
            else:
                answer = await browser.get("/files/noise.bin", headers={"range": f"bytes={number}-{number * 100}"})
                assert answer.content == NOISE[number : number * 100 + 1], len(answer.content)
            return connection_of(answer) if number % 3 else None

        used = set(await asyncio.gather(*(one(number) for number in range(1, 201)))) - {None}
        assert len(used) == 1 or version == "HTTP/1.1", f"{len(used)} connections"


@check("httpx streams a body up while swaps go on", each=EACH)
async def upload(place, version):
    async def pieces():
        for at in range(0, len(NOISE), 256 << 10):
            yield NOISE[at : at + (256 << 10)]
            if at in (0, 2 << 20):
                await place.swaps.more_async(1)

    async with client(place, version) as browser:
        for upstream in ("h1", "h2"):
            told = (await browser.post(f"/{upstream}/echo", content=pieces())).json()
            assert told["sha256"] == hashlib.sha256(NOISE).hexdigest(), told["length"]


@check("httpx reads a body slowly while swaps go on", each=EACH)
async def download(place, version):
    async with client(place, version) as browser:
        for path in ("/files/noise.bin", f"/h1/noise?n={len(NOISE)}&known=1", f"/h2c/noise?n={len(NOISE)}"):
            digest, length = hashlib.sha256(), 0
            async with browser.stream("GET", path) as answer:
                async for piece in answer.aiter_raw():
                    if length == 0:
                        await place.swaps.more_async(1)
                    digest.update(piece)
                    length += len(piece)
            assert digest.digest() == hashlib.sha256(NOISE).digest(), (path, length)


@check("httpx gives up a download, and its connection or stream is no worse", each=EACH)
async def given_up(place, version):
    async with client(place, version) as browser:
        for path in ("/files/noise.bin", f"/h1/noise?n={len(NOISE)}", f"/h2/noise?n={len(NOISE)}"):
            async with browser.stream("GET", path) as answer:
                await anext(answer.aiter_raw())
            assert (await browser.get("/h2c/echo")).status_code == 200


@check("httpx compressed pages and a stream of events that is not held back", each=EACH)
async def compressed(place, version):
    async with client(place, version, connections=2) as browser:
        page = await browser.get("/packed/page")
        assert page.headers["content-encoding"] == "gzip" and "accept-encoding" in page.headers["vary"].lower(), page.headers
        assert page.text == (await browser.get("/h1/page")).text
        name = uuid.uuid4().hex
        async with browser.stream("GET", f"/packed/events?name={name}") as events:
            lines = events.aiter_lines()
            assert await anext(lines) == "data: one"
            assert (await browser.get(f"/h2/seen?name={name}")).status_code == 204
            assert [line async for line in lines] == ["", "data: two", ""]


@check("httpx, each status passes on", each=EACH)
async def statuses(place, version):
    async with client(place, version) as browser:
        for upstream in ("h1", "h2c"):
            for code in (200, 201, 204, 301, 304, 400, 401, 404, 410, 418, 429, 500, 503, 599):
                answer = await browser.get(f"/{upstream}/status?code={code}")
                assert answer.status_code == code and not answer.content, (code, answer)
