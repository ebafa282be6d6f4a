"""curl, libcurl's websockets, and h2load (scripts/clients)."""

import hashlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

import curl_cffi
from curl_cffi import CurlWsFlag

from clients_kit import CLEARTEXT, NOISE, TLS, Place, check

UPSTREAMS = ["h1", "h1s", "h2c", "h2", "auto"]
VERSION = {"h1": "1.1", "h1s": "1.1", "h2c": "2", "h2": "2", "auto": "2"}
SUM = hashlib.sha256(NOISE).hexdigest()


def spoken(place: Place, mode: str) -> str:
    """The version that a request with this option comes by: in cleartext `--http2` asks for an upgrade and gets none."""
    return "2" if mode == "--http2-prior-knowledge" or (mode == "--http2" and place.tls) else "1.1"


def curl(place: Place, *options, code=0, feed=None) -> bytes:
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--cacert", place.ca, *options]
    done = subprocess.run(command, input=feed, capture_output=True)
    assert done.returncode == code, f"{' '.join(command)}: {done.returncode}: {done.stderr.decode()}"
    return done.stdout


def version_and_status(place: Place, *options) -> tuple[str, str]:
    told = curl(place, "--output", "/dev/null", "--write-out", "%{http_version} %{response_code}", *options)
    version, status = told.decode().split()
    return version, status


@check("curl to every upstream", each=["--http1.1", "--http2"])
@check("curl to every upstream", at=CLEARTEXT, each=["--http2-prior-knowledge"])
def versions(place, mode):
    for upstream in UPSTREAMS:
        told = json.loads(curl(place, mode, "--fail", f"{place.url}/{upstream}/echo"))
        assert told["version"] == VERSION[upstream], (upstream, told)
    assert version_and_status(place, mode, f"{place.url}/hello") == (spoken(place, mode), "200")
    assert version_and_status(place, mode, f"{place.url}/files/small.txt") == (spoken(place, mode), "200")


@check("curl --http1.0")
def version_1_0(place):
    assert curl(place, "--http1.0", f"{place.url}/h1/noise?n=300000") == NOISE[:300000]
    assert curl(place, "--http1.0", f"{place.url}/files/small.txt") == b"small\n"


@check("curl --tlsv1.2 and 1.3, and the redirect to https", at=TLS)
def tls_versions(place):
    for version in ("1.2", "1.3"):
        assert curl(place, f"--tlsv{version}", "--tls-max", version, "--fail", f"{place.url}/hello").startswith(b"hello ")
    told = curl(place, "--dump-header", "-", "--output", "/dev/null", f"http://localhost:{place.redirect_port}/hello?a=b")
    assert b" 308 " in told.splitlines()[0] and f"{place.url}/hello?a=b".encode() in told, told
    # Whoever does not know the CA is told so.
    assert subprocess.run(["curl", "--silent", f"{place.url}/hello"], check=False).returncode == 60


@check("curl uploads: PUT of 4 MiB with 100-continue, chunked, form, empty", each=["--http1.1", "--http2"])
def uploads(place, mode):
    with tempfile.NamedTemporaryFile() as file:
        file.write(NOISE)
        file.flush()
        for upstream in UPSTREAMS:
            url = f"{place.url}/{upstream}/echo"
            told = json.loads(curl(place, mode, "--upload-file", file.name, url))
            assert (told["method"], told["length"], told["sha256"]) == ("PUT", len(NOISE), SUM), told
            told = json.loads(curl(place, mode, "--request", "POST", "--upload-file", "-", url, feed=NOISE))
            assert (told["method"], told["length"], told["sha256"]) == ("POST", len(NOISE), SUM), told
            told = json.loads(curl(place, mode, "--form", f"file=@{file.name}", url))
            assert told["length"] > len(NOISE) and "multipart/form-data" in told["fields"]["content-type"][0], told
            told = json.loads(curl(place, mode, "--data", "", url))
            assert (told["method"], told["length"]) == ("POST", 0), told


@check("curl ranges and resumed downloads", each=["--http1.1", "--http2"])
def ranges(place, mode):
    url = f"{place.url}/files/noise.bin"
    assert curl(place, mode, "--range", "100-199", url) == NOISE[100:200]
    assert curl(place, mode, "--range", "-5", url) == NOISE[-5:]
    several = curl(place, mode, "--range", "0-9,1000000-1000009", "--include", url)
    assert b"multipart/byteranges" in several and NOISE[:10] in several and NOISE[1000000:1000010] in several
    assert version_and_status(place, mode, "--range", f"{len(NOISE)}-", url)[1] == "416"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "noise.bin"
        file.write_bytes(NOISE[:1234567])
        curl(place, mode, "--continue-at", "-", "--output", file, url)
        assert file.read_bytes() == NOISE


@check("curl --compressed, all codings", each=["--http1.1", "--http2"])
def compressed(place, mode):
    url = f"{place.url}/packed/page"
    plain = curl(place, mode, url)
    for coding in ("gzip", "br", "zstd"):
        got = curl(place, mode, "--compressed", "--header", f"Accept-Encoding: {coding}", "--dump-header", "-", url)
        fields, _, body = got.partition(b"\r\n\r\n")
        assert f"content-encoding: {coding}".encode() in fields.lower(), fields
        assert body == plain, coding
    size = curl(place, mode, "--compressed", "--output", "/dev/null", "--write-out", "%{size_download}", url)
    assert int(size) * 10 < len(plain), size


@check("curl conditional requests and HEAD", each=["--http1.1", "--http2"])
def conditional(place, mode):
    url = f"{place.url}/files/small.txt"
    with tempfile.TemporaryDirectory() as folder:
        tag = Path(folder) / "etag"
        curl(place, mode, "--etag-save", tag, url)
        assert tag.read_text().startswith('"'), tag.read_text()
        assert version_and_status(place, mode, "--etag-compare", tag, url)[1] == "304"
        assert version_and_status(place, mode, "--header", f"If-Match: {tag.read_text().strip()}", url)[1] == "200"
    assert version_and_status(place, mode, "--header", 'If-Match: "other"', url)[1] == "412"
    assert version_and_status(place, mode, "--time-cond", f"{place.www}/files/small.txt", url)[1] == "304"
    assert version_and_status(place, mode, "--time-cond", "2001-01-01", url)[1] == "200"
    head = curl(place, mode, "--head", url).lower()
    assert b"content-length: 6\r\n" in head and head.endswith(b"\r\n\r\n"), head
    assert b" 404" in curl(place, mode, "--head", f"{place.url}/h2c/nothing").splitlines()[0]


@check("curl, 50 URLs over one connection", each=["--http1.1", "--http2"])
def keep_alive(place, mode):
    urls = [f"{place.url}/{['h1', 'h2c', 'files', 'auto'][n % 4]}/{'small.txt' if n % 4 == 2 else 'echo'}?{n}" for n in range(50)]
    outputs = [word for url in urls for word in ("--output", "/dev/null", url)]
    told = curl(place, mode, "--fail", "--write-out", "%{response_code} %{num_connects}\n", *outputs).decode().split("\n")[:-1]
    assert len(told) == 50 and all(line.startswith("200 ") for line in told), told
    assert sum(int(line.split()[1]) for line in told) == 1, told


@check("curl --parallel, 60 streams over HTTP/2", at=TLS)
def parallel(place):
    url = f"{place.url}/h2/noise?n=100000&[1-60]"
    with tempfile.TemporaryDirectory() as folder:
        curl(place, "--http2", "--fail", "--parallel", "--parallel-max", "60", "--output", f"{folder}/#1", url)
        files = list(Path(folder).iterdir())
        assert len(files) == 60 and all(file.read_bytes() == NOISE[:100000] for file in files)


@check("curl follows an upgrade to a websocket")
def upgrade(place):
    """A build without websockets, too, shows the 101 and the bytes that follow."""
    protocols = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
    if " ws " in protocols:
        assert curl(place, f"{place.ws}/ws/greet") == b"hello"
        return
    fields = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    options = [word for field in [*fields, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="] for word in ("--header", field)]
    process = subprocess.Popen(
        ["curl", "--silent", "--no-buffer", "--http1.1", "--include", "--max-time", "20", "--cacert", place.ca, *options, f"{place.url}/ws/greet"],
        stdout=subprocess.PIPE,
    )
    try:
        got = b""
        while b"\x81\x05hello" not in got:
            piece = process.stdout.read1()
            assert piece, got
            got += piece
    finally:
        process.kill()
        process.communicate()
    assert got.startswith(b"HTTP/1.1 101 ") and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in got, got


@check("libcurl websocket: text, binary, large")
def libcurl_websocket(place):
    with curl_cffi.Session(verify=place.ca) as session:
        socket = session.ws_connect(f"{place.ws}/ws/libcurl")
        for kind, sent in ((CurlWsFlag.TEXT, "grüße".encode()), (CurlWsFlag.BINARY, b"\0\xff" * 100), (CurlWsFlag.BINARY, NOISE[:30000])):
            socket.send(sent, kind)
            got, flags = socket.recv()
            assert got == sent and flags & kind, (len(got), flags)
        place.swaps.more(2)
        socket.send_str("after swaps")
        assert socket.recv_str() == "after swaps"
        socket.close()


def h2load(place: Place, requests: int, *options):
    command = ["h2load", "--threads", "1", "--requests", str(requests), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    # The last word of `requests:` is only there if all went well, and `status codes:` says that they were no errors.
    counted = dict((name, int(number)) for number, name in re.findall(r"(\d+) (total|succeeded|failed|errored|timeout)", done.stdout))
    good = re.search(r"status codes: (\d+) 2xx", done.stdout)
    assert done.returncode == 0 and counted.get("succeeded") == requests, done.stdout + done.stderr
    assert counted["failed"] == counted["errored"] == counted["timeout"] == 0, done.stdout
    assert good and int(good[1]) == requests, done.stdout


@check("h2load, 4 connections of 100 streams, 5,000 answers made here")
def many_streams(place):
    h2load(place, 5000, "--clients", "4", "--max-concurrent-streams", "100", f"{place.url}/hello", f"{place.url}/files/small.txt")


@check("h2load, 2 connections of 50 streams, proxied", each=["h1", "h2c", "h2"])
def many_proxied(place, upstream):
    h2load(place, 300, "--clients", "2", "--max-concurrent-streams", "50", f"{place.url}/{upstream}/echo")


@check("h2load, large answers")
def many_large(place):
    h2load(place, 60, "--clients", "2", "--max-concurrent-streams", "20", f"{place.url}/files/noise.bin")


@check("h2load --h1, 20 connections")
def many_connections(place):
    h2load(place, 2000, "--h1", "--clients", "20", f"{place.url}/hello")
