"""The load that `scripts/bench` puts on a server, and what counts as a success.

wrk does HTTP/1 (with and without TLS), h2load HTTP/2, `openssl s_time` TLS handshakes, `examples/wsload.rs` websockets, `examples/streamload.rs` the
rest.
Every tool offers TLS 1.3, AES-128-GCM and X25519 first (P-256 must stand beside it: OpenSSL refuses the certificate
otherwise), so that the servers do the same cryptography. Each function returns requests, seconds, bytes, errors, a note
on the first error, and milliseconds p50, p99, p999 where the tool knows them."""

import json
import os
import re
import resource
import socket
import ssl
import subprocess
import time

from bench_servers import ANSWER, Broken, pinned

LUA = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nJSON {"requests":%d,"seconds":%.6f,"bytes":%.0f,"p50":%.3f,"p99":%.3f,"p999":%.3f,"errors":%d,' ..
    '"note":"connect %d, read %d, write %d, status %d, timeout %d"}\\n',
    summary.requests, summary.duration / 1e6, summary.bytes, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, latency:percentile(99.9) / 1000,
    e.connect + e.read + e.write + e.status + e.timeout, e.connect, e.read, e.write, e.status, e.timeout))
end
"""

OPENSSL = """
openssl_conf = all
[all]
ssl_conf = tls
[tls]
system_default = offer
[offer]
MinProtocol = TLSv1.3
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519:P-256
"""

SIZES = {"/small": len(ANSWER), "/1k": 1024, "/10k": 10 * 1024, "/10m": 10 * 1024 * 1024}


class Load:
    """Starts load generators, on one core if it is given."""

    def __init__(self, place, core, wsload, streamload):
        self.place, self.core, self.wsload, self.streamload = place, core, wsload, streamload
        self.lua = place.folder / "report.lua"
        self.lua.write_text(LUA)
        openssl = place.folder / "openssl.cnf"
        openssl.write_text(OPENSSL)
        self.environment = os.environ | {"OPENSSL_CONF": str(openssl)}

    def start(self, *command):
        try:
            return subprocess.Popen(pinned(self.core, [str(part) for part in command]), stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True, env=self.environment)
        except OSError as error:
            raise Broken(f"{command[0]} does not start: {error}") from error

    @staticmethod
    def finish(process, seconds):
        """What it printed. No load generator may wait for ever on a server that has gone silent."""
        try:
            return process.communicate(timeout=10 * seconds + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Broken(f"{process.args[-1]}: the load generator did not end") from None

    def run(self, seconds, *command):
        process = self.start(*command)
        output, errors = self.finish(process, seconds)
        if process.returncode != 0:
            raise Broken(f"{command[0]} ended with {process.returncode}: {(errors or output).strip()[-300:]}")
        return output

    def report(self, seconds, *command):
        """Of a tool that prints its figures as JSON."""
        output = self.run(seconds, *command)
        line = next((l for l in output.splitlines() if l.startswith("JSON ")), None)
        if line is None:
            raise Broken(f"{command[0]} does not report: {output.strip()[-300:]}")
        return json.loads(line[5:])

    def wrk(self, server, work, seconds):
        scheme = "https" if work.listener == "tls" else "http"
        command = ["wrk", "-t1", f"-c{work.connections}", f"-d{seconds}s", "--latency", "-s", self.lua]
        if work.fresh:
            command += ["-H", "Connection: close"]
        result = self.report(seconds, *command, f"{scheme}://127.0.0.1:{server.port}{work.path}")
        # wrk looks at the status only.
        if result["bytes"] < result["requests"] * SIZES[work.path]:
            result["errors"] += 1
            result["note"] = "responses are too short"
        if result["bytes"] and not result["requests"] and seconds > 1:
            result["errors"] += 1
            result["note"] = "not one whole response"
        return result

    def h2load(self, server, work, seconds):
        """As many requests as the warm-up says take that long: all that is paid for is then counted."""
        scheme = "https" if work.listener == "tls" else "http"
        log = self.place.folder / "h2load.log"
        log.unlink(missing_ok=True)
        amount = ["-D", "1"]
        if server.pace:
            amount = ["-n", max(int(server.pace * seconds), 2 * work.connections * work.streams)]
        begun = time.monotonic()
        output = self.run(seconds, "h2load", "-t1", "-c", work.connections, "-m", work.streams, *amount, "--log-file", log,
                          f"{scheme}://127.0.0.1:{server.port}{work.path}")
        wall = time.monotonic() - begun
        done = re.search(r"requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, .*", output)
        good = re.search(r"status codes: (\d+) 2xx", output)
        data = re.search(r"headers \(space.*, \S+ \((\d+)\) data", output)
        if not (done and good and data):
            raise Broken(f"h2load does not report: {output.strip()[-300:]}")
        if scheme == "https" and "Application protocol: h2" not in output:
            raise Broken("no HTTP/2 was agreed on")
        if not server.pace:
            server.pace = int(good[1])
        wanted, succeeded = int(done[1]), min(int(done[2]), int(good[1]))
        errors, note = wanted - succeeded, done[0]
        if int(data[1]) < succeeded * SIZES[work.path]:
            errors, note = errors + 1, "responses are too short"
        times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
        # Without the start of the tool, if it says so ("finished in 6.02s, ...").
        finished = re.search(r"finished in ([\d.]+)(us|ms|s|m)\b", output)
        if finished:
            wall = float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60}[finished[2]]

        def at(share):
            return times[min(int(len(times) * share), len(times) - 1)] / 1000 if times else None

        return {"requests": succeeded, "seconds": wall, "bytes": int(data[1]), "p50": at(.5), "p99": at(.99),
                "p999": at(.999), "errors": errors, "note": note}

    def handshakes(self, server, work, seconds):
        """Several s_time side by side: each does one handshake and one small request after the other."""
        begun = time.monotonic()
        running = [self.start("openssl", "s_time", "-connect", f"127.0.0.1:{server.port}", "-tls1_3", "-www", work.path,
                              "-reuse" if work.resumed else "-new", "-time", seconds)
                   for _ in range(work.connections)]
        try:
            outputs = [(self.finish(p, seconds), p.returncode) for p in running]
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        result = {"seconds": time.monotonic() - begun, "requests": 0, "bytes": 0, "errors": 0, "note": ""}
        wanted = "r" if work.resumed else "*"
        for (output, errors), status in outputs:
            figures = re.search(r"(\d+) connections in .* bytes read (\d+)", output)
            if status != 0 or not figures:
                result["errors"] += 1
                result["note"] = f"openssl s_time: {(errors or output).strip()[-300:]}"
                continue
            count, read = int(figures[1]), int(figures[2])
            # One character a handshake: `r` resumed, `*` full.
            marks = "".join(re.findall(r"^[*rt3]+$", output, re.M))
            right = marks.count(wanted)
            if right != count:
                result["errors"] += count - right
                result["note"] = f"of {count} handshakes {right} were {'resumed' if work.resumed else 'full'}"
            # s_time does not look at what it reads: its length must be that of the answer which was checked.
            if read != count * server.answer:
                result["errors"] += 1
                result["note"] = f"{read} bytes in {count} responses of {server.answer}"
            result["requests"] += right
            result["bytes"] += read
        return result

    def websockets(self, server, work, seconds):
        return self.report(seconds, self.wsload, "load", f"127.0.0.1:{server.port}", "--path", work.path, "--connections",
                           work.connections, "--size", work.size, "--seconds", seconds)

    def streams(self, server, work, seconds):
        return self.report(seconds, self.streamload, "load", f"127.0.0.1:{server.port}", "--through",
                           "tcp" if work.site == "tunnel" else work.site,
                           "--origin", f"127.0.0.1:{server.origin}", "--connections", work.connections,
                           "--size", work.size, "--seconds", seconds, "--fresh", "yes" if work.fresh else "no")

    def held(self, server, work, seconds):
        """Connections that have each had an answer and then stay, and the memory that both ends have for them."""
        streams = []
        try:
            for _ in range(work.connections):
                stream = socket.create_connection(("127.0.0.1", server.port), timeout=10)
                streams.append(stream)
                stream.sendall(work.size.to_bytes(8, "big"))
                left = work.size
                while left:
                    came = len(stream.recv(left))
                    if not came:
                        raise Broken(f"{server.name} closes a connection")
                    left -= came
            # More than with none at the start: what an allocator has kept of an earlier round is no part of that.
            each = (server.memory() - server.idle) / work.connections
        except OSError as error:
            raise Broken(f"{server.name}: {error}") from error
        finally:
            for stream in streams:
                stream.close()
        return {"requests": work.connections, "seconds": 1, "bytes": work.connections * work.size, "errors": 0, "note": "",
                "each": each}

    def check(self, server, work):
        """One request, looked at as wrk and s_time do not: status and whole body."""
        if work.listener == "h2c" or work.tool in ("websockets", "streams", "held"):
            # h2load and our own look themselves.
            return
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stream:
                if work.listener == "tls":
                    trust = ssl.create_default_context(cafile=self.place.cert)
                    stream = trust.wrap_socket(stream, server_hostname="127.0.0.1")
                # For handshakes in the words of s_time, whose answers must then be as long as this one.
                host = "" if work.tool == "handshakes" else f"Host: 127.0.0.1:{server.port}\r\n"
                stream.sendall(f"GET {work.path} HTTP/1.0\r\n{host}\r\n".encode())
                answer = b"".join(iter(lambda: stream.recv(65_536), b""))
        except OSError as error:
            raise Broken(f"{server.name} does not answer: {error}") from error
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.split(b" ")[1:2] != [b"200"] or len(body) != SIZES[work.path]:
            line = head.splitlines()[:1]
            raise Broken(f"{server.name} answers {line} with {len(body)} bytes")
        server.answer = len(answer)

    def measure(self, server, work, seconds, origin):
        """One run, with what it cost the server."""
        watched = [s for s in (server, origin) if s]
        before, begun = [s.cpu() for s in watched], time.monotonic()
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = getattr(self, work.tool)(server, work, seconds)
        wall = time.monotonic() - begun
        used = [s.cpu() - b for s, b in zip(watched, before)]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if not result[work.counted]:
            raise Broken(f"{server.name}: no success at all; {result['note']}")
        result["cpu"] = used[0] / result[work.counted] * work.per if work.tool != "held" else result.pop("each")
        result["rate"] = result["requests"] / result["seconds"]
        result["busy_server"] = used[0] / wall * 100
        result["busy_load"] = (after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime) / wall * 100
        result["busy_origin"] = used[1] / wall * 100 if origin else 0.0
        return result
