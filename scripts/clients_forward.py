"""Clients of forward proxies: curl, proxychains4, requests, httpx, PySocks and aiohttp, by every protocol that they and
`[forward]` have in common, to IPv4, IPv6 and names (scripts/clients)."""

import hashlib
import io
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
import uuid
from contextlib import closing

import aiohttp
import aiohttp_socks
import curl_cffi
import httpx
import requests
import socks
from curl_cffi import CurlOpt

from clients_kit import NOISE, Forward, check

AT = ("forward",)
# SOCKS4 has no IPv6.
V4 = ["127.0.0.1", "localhost"]
ALL = ["127.0.0.1", "[::1]", "localhost"]
SUM = hashlib.sha256(NOISE).hexdigest()
# A name whose way is barred at the proxy; who looks it up himself finds loopback.
DENIED = "denied.localhost"
USER, PASSWORD = "alice", "open-sesame"
WRONG = ["guess", "", "open-sesame ", PASSWORD * 15]

SOCKS = {"--socks4": V4, "--socks4a": V4, "--socks5": ALL, "--socks5-hostname": ALL}
HTTP = {"--proxy http": ALL, "--proxytunnel --proxy http": ALL, "--proxy https": ALL}
CURL = SOCKS | HTTP
SCHEMES = {"socks4": V4, "socks4a": V4, "socks5": ALL, "socks5h": ALL, "http": ALL}


def without_environment() -> dict:
    """What the machine says of proxies is not for these."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def judge(told: dict, host: str):
    """What an origin saw of a request through a proxy."""
    assert told["client"] == ("::1" if host == "[::1]" else "127.0.0.1"), told
    assert told["fields"]["host"][0].startswith(f"{host}:") or told["version"] == "2", told
    hop = [name for name in told["fields"] if name.startswith("proxy-")]
    assert not hop, f"the origin has heard {hop}"


# --- curl ---


def by(forward: Forward, way: str, user: str | None = None) -> list[str]:
    """curl's options for a proxy; `user`: with the password, and to the one that asks for it."""
    port = forward.open if user is None else forward.users
    named = [] if user is None else ["--proxy-user", user]
    *options, last = way.split()
    if last == "https":
        return [*options, f"https://localhost:{forward.tls}", "--proxy-cacert", forward.ca, *named]
    if last == "http":
        return [*options, f"http://localhost:{port}", *named]
    return [*options, last, f"localhost:{port}", *named]


def curl(forward: Forward, *options, code=0, before=()) -> subprocess.CompletedProcess:
    command = [*before, "curl", "--silent", "--show-error", "--max-time", "20", "--cacert", forward.origin_ca, *options]
    done = subprocess.run(command, capture_output=True, env=without_environment())
    assert done.returncode == code, f"{' '.join(command)}: {done.returncode}: {done.stderr.decode()}"
    return done


@check("curl to each kind of destination", at=AT, each=CURL)
def curl_anywhere(forward, way):
    for host in CURL[way]:
        proxy = by(forward, way)
        judge(json.loads(curl(forward, *proxy, "--fail", f"http://{host}:{forward.clear}/h1/echo").stdout), host)
        told = json.loads(curl(forward, *proxy, "--fail", f"https://{host}:{forward.secure}/h1/echo").stdout)
        assert told["version"] == "2", told
        judge(told, host)
        with tempfile.NamedTemporaryFile() as file:
            file.write(NOISE)
            file.flush()
            told = json.loads(curl(forward, *proxy, "--upload-file", file.name, f"http://{host}:{forward.clear}/h1/echo").stdout)
        assert (told["length"], told["sha256"]) == (len(NOISE), SUM), told
        url = f"https://{host}:{forward.secure}/h1/noise?n={len(NOISE)}"
        assert curl(forward, *proxy, url).stdout == NOISE


@check("curl, 20 requests over one connection", at=AT, each=CURL)
def curl_keeps(forward, way):
    outputs = [word for n in range(20) for word in ("--output", "/dev/null", f"http://localhost:{forward.clear}/h1/echo?{n}")]
    told = curl(forward, *by(forward, way), "--fail", "--write-out", "%{response_code} %{num_connects}\n", *outputs).stdout
    lines = told.decode().split("\n")[:-1]
    assert len(lines) == 20 and all(line.startswith("200 ") for line in lines), lines
    assert sum(int(line.split()[1]) for line in lines) == 1, lines


@check("curl, an answer that goes on over swaps", at=AT, each=CURL)
def curl_over_swaps(forward, way):
    name = uuid.uuid4().hex
    origin = f"http://localhost:{forward.clear}/h1"
    command = ["curl", "--silent", "--no-buffer", "--max-time", "20", *by(forward, way), f"{origin}/events?name={name}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=without_environment()) as process:
        assert process.stdout.readline() == b"data: one\n"
        forward.swaps.more(3)
        curl(forward, *by(forward, way), "--fail", f"{origin}/seen?name={name}")
        assert process.stdout.read() == b"\ndata: two\n\n"
    assert process.returncode == 0, process.returncode


@check("curl --proxy-user, right and wrong", at=AT, each=SOCKS)
def curl_users(forward, way):
    url = f"http://localhost:{forward.clear}/h1/echo"
    four = way.startswith("--socks4")
    # SOCKS4 has no passwords: where they are asked for it lets nobody in.
    told = curl(forward, *by(forward, way, f"{USER}:{PASSWORD}"), url, code=97 if four else 0).stdout
    if not four:
        judge(json.loads(told), "localhost")
    for wrong in [*(f"{USER}:{password}" for password in WRONG), f"bob:{PASSWORD}"]:
        curl(forward, *by(forward, way, wrong), url, code=97)
    curl(forward, way, f"localhost:{forward.users}", url, code=97)


@check("curl, refused and dead destinations", at=AT, each=SOCKS)
def curl_refused(forward, way):
    dead, denied = ("(91)", "(91)") if way.startswith("--socks4") else ("(5)", "(2)")
    proxy = by(forward, way)
    for host in CURL[way]:
        assert dead in curl(forward, *proxy, f"http://{host}:{forward.nobody}/", code=97).stderr.decode()
    for host in ("169.254.169.254", "10.6.6.6"):
        assert denied in curl(forward, *proxy, f"http://{host}/", code=97).stderr.decode()
    url = f"http://{DENIED}:{forward.clear}/h1/echo"
    if way in ("--socks4a", "--socks5-hostname"):
        assert denied in curl(forward, *proxy, url, code=97).stderr.decode()
    else:
        # It asks for the address, and that one is allowed.
        assert json.loads(curl(forward, *proxy, url).stdout)["client"] == "127.0.0.1"


@check("curl --proxy-user, 407 and what becomes of it", at=AT)
def curl_users_http(forward):
    proxy = by(forward, "--proxy http", f"{USER}:{PASSWORD}")
    clear, secure = f"http://localhost:{forward.clear}/h1/echo", f"https://localhost:{forward.secure}/h1/echo"
    for url in (clear, secure):
        for how in ([], ["--proxy-anyauth"]):
            judge(json.loads(curl(forward, *proxy, *how, "--fail", url).stdout), "localhost")
        for wrong in [*(f"{USER}:{password}" for password in WRONG), f"bob:{PASSWORD}"]:
            tunnel = url == secure
            codes = "%{http_connect}" if tunnel else "%{response_code}"
            options = by(forward, "--proxy http", wrong)
            told = curl(forward, *options, "--output", "/dev/null", "--write-out", codes, url, code=56 if tunnel else 0)
            assert told.stdout == b"407", told
    fields = curl(forward, "--proxy", f"http://localhost:{forward.users}", "--include", clear).stdout.lower()
    assert b"\r\nproxy-authenticate: basic realm=" in fields, fields


@check("curl, refused and dead destinations by HTTP", at=AT, each=HTTP)
def curl_refused_http(forward, way):
    for url, status in (
        (f"http://{DENIED}:{forward.clear}/", "403"),
        ("http://169.254.169.254/", "403"),
        (f"http://localhost:{forward.nobody}/", "502"),
    ):
        tunnel = way.startswith("--proxytunnel")
        codes = "%{http_connect}" if tunnel else "%{response_code}"
        told = curl(forward, *by(forward, way), "--output", "/dev/null", "--write-out", codes, url, code=56 if tunnel else 0)
        assert told.stdout.decode() == status, (url, told)
        told = curl(forward, *by(forward, way), "--output", "/dev/null", "--dump-header", "-", url, code=56 if tunnel else 0)
        assert b"proxy-status: " in told.stdout.lower(), told


@check("libcurl, CONNECT over HTTP/2", at=AT)
def libcurl_http2(forward):
    """As `--proxy-http2`, which the curl of many systems does not have yet."""
    for host in ALL:
        told, said = io.BytesIO(), []
        with closing(curl_cffi.Curl()) as libcurl:
            for option, value in {
                CurlOpt.URL: f"https://{host}:{forward.secure}/h1/echo",
                CurlOpt.PROXY: f"https://localhost:{forward.tls}",
                CurlOpt.PROXYTYPE: 3,
                CurlOpt.NOPROXY: "",
                CurlOpt.PROXY_CAINFO: forward.ca,
                CurlOpt.CAINFO: forward.origin_ca,
                CurlOpt.TIMEOUT: 20,
                CurlOpt.WRITEDATA: told,
                CurlOpt.VERBOSE: 1,
                CurlOpt.DEBUGFUNCTION: lambda _, text: said.append(text),
            }.items():
                libcurl.setopt(option, value)
            libcurl.perform()
        judge(json.loads(told.getvalue()), host)
        said = [text for text in said if b"CONNECT" in text]
        assert any(b"HTTP/2" in text for text in said), said


# --- proxychains4 ---


def chained(forward: Forward, *proxies: str, url: str, code=0) -> bytes:
    """curl, which knows of no proxy, through a chain of them."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("strict_chain\nproxy_dns\ntcp_read_time_out 15000\ntcp_connect_time_out 8000\n[ProxyList]\n")
        file.writelines(f"{proxy}\n" for proxy in proxies)
        file.flush()
        return curl(forward, url, code=code, before=["proxychains4", "-q", "-f", file.name]).stdout


@check("proxychains4", at=AT, each=["socks5", "socks4", "http"])
def proxychains(forward, kind):
    first = f"{kind} 127.0.0.1 {forward.open}"
    for host in V4 if kind == "socks4" else ALL:
        judge(json.loads(chained(forward, first, url=f"http://{host}:{forward.clear}/h1/echo")), host)
        assert chained(forward, first, url=f"https://{host}:{forward.secure}/h1/noise?n={len(NOISE)}") == NOISE
    chained(forward, first, url=f"http://127.0.0.1:{forward.nobody}/", code=7)
    if kind == "socks4":
        return
    url = f"http://127.0.0.1:{forward.clear}/h1/echo"
    second = f"{kind} 127.0.0.1 {forward.users} {USER}"
    judge(json.loads(chained(forward, f"{second} {PASSWORD}", url=url)), "127.0.0.1")
    judge(json.loads(chained(forward, first, f"{second} {PASSWORD}", url=url)), "127.0.0.1")
    for chain in ([f"{second} guess"], [first, f"{second} guess"], [f"{kind} 127.0.0.1 {forward.users}"]):
        chained(forward, *chain, url=url, code=7)


# --- requests ---


def proxy_url(forward: Forward, scheme: str, user: str | None = None) -> str:
    return f"{scheme}://127.0.0.1:{forward.open}" if user is None else f"{scheme}://{user}@127.0.0.1:{forward.users}"


def session(forward: Forward, scheme: str, user: str | None = None) -> requests.Session:
    made = requests.Session()
    made.trust_env, made.verify = False, forward.origin_ca
    made.proxies = dict.fromkeys(("http", "https"), proxy_url(forward, scheme, user))
    return made


@check("requests", at=AT, each=SCHEMES)
def with_requests(forward, scheme):
    for host in SCHEMES[scheme]:
        with session(forward, scheme) as through:
            for turn in range(2):
                for url in (f"http://{host}:{forward.clear}/h1/echo", f"https://{host}:{forward.secure}/h1/echo"):
                    answer = through.post(url, data=NOISE, timeout=20)
                    assert (answer.json()["length"], answer.json()["sha256"]) == (len(NOISE), SUM), answer.json()
                    judge(answer.json(), host)
                if turn == 0:
                    forward.swaps.more(1)
    clear = f"http://localhost:{forward.clear}/h1/echo"
    users = {f"{USER}:{PASSWORD}": not scheme.startswith("socks4"), f"{USER}:guess": False, f"bob:{PASSWORD}": False}
    for user, right in users.items():
        with session(forward, scheme, user) as through:
            try:
                assert (through.get(clear, timeout=20).status_code == 200) == right, user
            except requests.ConnectionError as refused:
                assert not right, refused
    with session(forward, scheme) as through:
        for url in (f"http://localhost:{forward.nobody}/", "http://169.254.169.254/"):
            try:
                assert through.get(url, timeout=20).status_code in (403, 502), url
            except requests.ConnectionError:
                assert scheme != "http"


# --- httpx ---


@check("httpx, HTTP/1.1 and HTTP/2 to the origin", at=AT, each=["socks5", "socks5h", "http"])
async def with_httpx(forward, scheme):
    def client(**options):
        trusted = ssl.create_default_context(cafile=forward.origin_ca)
        return httpx.AsyncClient(verify=trusted, trust_env=False, timeout=20, **options)

    for two in (False, True):
        async with client(proxy=proxy_url(forward, scheme), http2=two) as through:
            for host in ALL:
                # It asks a proxy for `http://::1:80/`, without brackets (RFC 3986 section 3.2.2), which is refused.
                near = "localhost" if scheme == "http" and host == "[::1]" else host
                clear, secure = f"http://{near}:{forward.clear}/h1", f"https://{host}:{forward.secure}/h1"
                judge((await through.get(f"{clear}/echo")).json(), near)
                told = (await through.post(f"{secure}/echo", content=NOISE)).json()
                assert (told["version"], told["sha256"]) == ("2" if two else "1.1", SUM), told
                judge(told, host)
                name = uuid.uuid4().hex
                async with through.stream("GET", f"{secure}/events?name={name}") as events:
                    lines = events.aiter_lines()
                    assert await anext(lines) == "data: one"
                    await forward.swaps.more_async(1)
                    assert (await through.get(f"{clear}/seen?name={name}")).status_code == 204
                    assert [line async for line in lines] == ["", "data: two", ""]
    url = f"https://localhost:{forward.secure}/h1/echo"
    async with client(proxy=proxy_url(forward, scheme, f"{USER}:{PASSWORD}")) as through:
        assert (await through.get(url)).status_code == 200
    for proxy, to in (
        (proxy_url(forward, scheme, f"{USER}:guess"), url),
        (f"{scheme}://127.0.0.1:{forward.users}", url),
        (proxy_url(forward, scheme), f"https://localhost:{forward.nobody}/"),
        (proxy_url(forward, scheme), "https://169.254.169.254/"),
    ):
        async with client(proxy=proxy) as through:
            try:
                raise AssertionError(f"{proxy} to {to}: {await through.get(to)}")
            except httpx.ProxyError:
                pass


# --- PySocks ---


def pysocks(forward: Forward, kind: int, names: bool, user=None, password=None, family=socket.AF_INET) -> socks.socksocket:
    made = socks.socksocket(family)
    made.settimeout(20)
    made.set_proxy(kind, "127.0.0.1", forward.open if user is None else forward.users, names, user, password)
    return made


def exchange(stream, host: str) -> dict:
    """One request and its answer, on a connection that stays."""
    stream.sendall(f"GET /h1/echo HTTP/1.1\r\nhost: {host}:0\r\n\r\n".encode())
    got = b""
    while not got.endswith(b"0\r\n\r\n"):
        piece = stream.recv(65536)
        assert piece, got
        got += piece
    return json.loads(got[got.index(b"{") : got.rindex(b"}") + 1])


@check("PySocks, names looked up here and there", at=AT, each=["SOCKS4", "SOCKS5", "HTTP"])
def with_pysocks(forward, kind):
    kind = socks.PROXY_TYPES[kind]
    four = kind == socks.SOCKS4
    for names in (True, False):
        # By HTTP it finds no IPv6 addresses itself.
        for host in V4 if four or (kind == socks.HTTP and not names) else ALL:
            with closing(pysocks(forward, kind, names)) as stream:
                stream.connect((host.strip("[]"), forward.clear))
                judge(exchange(stream, host), host)
                forward.swaps.more(1)
                judge(exchange(stream, host), host)

    def refused(to, *options) -> str:
        with closing(pysocks(forward, kind, True, *options)) as stream:
            try:
                stream.connect(to)
                raise AssertionError(f"connected to {to} with {options}")
            except socks.ProxyError as error:
                return str(error)

    origin = ("localhost", forward.clear)
    if not four:
        with closing(pysocks(forward, kind, True, USER, PASSWORD)) as stream:
            stream.connect(origin)
            judge(exchange(stream, "localhost"), "localhost")
    codes = {socks.SOCKS4: ("0x5b", "0x5b", "0x5b"), socks.SOCKS5: ("authentication failed", "0x02", "0x05"), socks.HTTP: ("407", "403", "502")}
    wrong, denied, dead = codes[kind]
    for user, password in ((USER, "guess"), ("bob", PASSWORD)):
        assert wrong in refused(origin, user, password)
    assert denied in refused((DENIED, forward.clear))
    assert denied in refused(("169.254.169.254", 80))
    assert dead in refused(("127.0.0.1", forward.nobody))


@check("PySocks, datagrams by UDP ASSOCIATE", at=AT)
def datagrams(forward):
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as origin:
        origin.bind(("127.0.0.1", 0))
        to = origin.getsockname()

        def echo():
            while (received := origin.recvfrom(65536))[0] != b"end":
                origin.sendto(*received)

        echoing = threading.Thread(target=echo)
        echoing.start()
        try:
            for user in ((), (USER, PASSWORD)):
                with closing(socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
                    client.settimeout(20)
                    client.set_proxy(socks.SOCKS5, "127.0.0.1", forward.users if user else forward.open, True, *user)
                    for said in (b"one", NOISE[:1400], b""):
                        client.sendto(said, to)
                        assert client.recvfrom(65536) == (said, to)
                        forward.swaps.more(1)
        finally:
            origin.sendto(b"end", to)
            echoing.join(20)


# --- aiohttp ---


@check("aiohttp-socks", at=AT, each=["socks4", "socks5", "http"])
async def with_aiohttp(forward, scheme):
    trusted = ssl.create_default_context(cafile=forward.origin_ca)

    def connector(user=None, names=True):
        return aiohttp_socks.ProxyConnector.from_url(proxy_url(forward, scheme, user), rdns=names, limit=1)

    for names in (True, False):
        async with aiohttp.ClientSession(connector=connector(names=names)) as through:
            for host in V4 if scheme == "socks4" else ALL:
                for turn in range(2):
                    async with through.post(f"http://{host}:{forward.clear}/h1/echo", data=NOISE) as answer:
                        told = await answer.json()
                    assert (told["length"], told["sha256"]) == (len(NOISE), SUM), told
                    judge(told, host)
                    if turn == 0:
                        await forward.swaps.more_async(1)
                async with through.get(f"https://{host}:{forward.secure}/h1/noise?n={len(NOISE)}", ssl=trusted) as answer:
                    assert await answer.read() == NOISE
            async with through.ws_connect(f"ws://localhost:{forward.websocket}/ws/aiohttp") as socket:
                for text in ("before swaps", "after swaps"):
                    await socket.send_str(text)
                    assert await socket.receive_str(timeout=20) == text
                    await forward.swaps.more_async(2)
    url = f"http://localhost:{forward.clear}/h1/echo"
    users = {f"{USER}:{PASSWORD}": scheme != "socks4", f"{USER}:guess": False, f"bob:{PASSWORD}": False}
    for user, right in users.items():
        async with aiohttp.ClientSession(connector=connector(user)) as through:
            try:
                async with through.get(url) as answer:
                    assert answer.status == 200 and right, user
            except aiohttp_socks.ProxyError as refused:
                assert not right, refused
    for to in (f"http://localhost:{forward.nobody}/", f"http://{DENIED}:{forward.clear}/", "http://169.254.169.254/"):
        async with aiohttp.ClientSession(connector=connector()) as through:
            try:
                async with through.get(to) as answer:
                    raise AssertionError(f"{to}: {answer.status}")
            except aiohttp_socks.ProxyError:
                pass


@check("aiohttp's own proxy", at=AT)
async def with_aiohttp_http(forward):
    trusted = ssl.create_default_context(cafile=forward.origin_ca)
    proxy = f"http://localhost:{forward.users}"
    async with aiohttp.ClientSession() as through:
        for user, right in (((USER, PASSWORD), True), ((USER, "guess"), False)):
            given = dict(proxy=proxy, proxy_auth=aiohttp.BasicAuth(*user))
            for host in ALL:
                async with through.get(f"http://{host}:{forward.clear}/h1/echo", **given) as answer:
                    assert answer.status == (200 if right else 407), answer
                    if right:
                        judge(await answer.json(), host)
                try:
                    async with through.get(f"https://{host}:{forward.secure}/h1/echo", ssl=trusted, **given) as answer:
                        judge(await answer.json(), host)
                        assert right
                except aiohttp.ClientHttpProxyError as refused:
                    assert refused.status == 407 and not right, refused
