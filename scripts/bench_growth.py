"""`scripts/bench --growth`: what becomes of cost and memory as things grow in number, on the server alone.

Routes: start, swap and the CPU of a request to the last host, each beside the size of the document. Targets: the CPU of a
request that goes on to one of so many addresses. Connections: the CPU of a request where so many ask in turn, answered by
the server itself. Idle: memory of a connection that had an answer and now waits. One worker, on core 0; load on core 1. What
the limit of descriptors does not allow is named, not tried. A row holds `flat` where its request may cost at most 1.25 times
that of the smallest of its kind: the issue wants requests flat and nothing worse than linear."""

import resource
import socket
import ssl
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import bench_servers as servers
import bench_swaps
from bench_load import Load
from bench_servers import ANSWER, Broken, free_port

ROUTES, TARGETS = (1, 100, 10_000, 100_000), (1, 10, 1_000)
CONNECTIONS, IDLE = (10, 1_000, 10_000, 18_000, 50_000), 10_000
# More than the server would take by itself: half of the descriptors. Here no request goes on, or few do.
MANY = 19_000
# Beside connections: files, listeners, the admin API.
SPARE = 500
FLAT = 1.25


@dataclass(frozen=True)
class Work:
    """As much as `Load.wrk` asks for."""
    connections: int = 32
    listener: str = "h1"
    path: str = "/small"
    fresh: bool = False


def cost(server, ask):
    """CPU seconds of 100,000 requests, and the load's own report."""
    before = server.cpu()
    report = ask()
    if not report["requests"]:
        raise Broken(f"no answer: {report['note']}")
    return {"cpu": (server.cpu() - before) / report["requests"] * 1e5, "rate": report["requests"] / report["seconds"],
            "p99": report["p99"], "errors": report["errors"], "note": report["note"]}


def routes(options, place, load, count, seconds):
    begun = time.monotonic()
    server = bench_swaps.Ours(options.binary, place, count)
    start = time.monotonic() - begun
    try:
        def ask(time):
            return load.report(time, options.swapload, f"127.0.0.1:{server.port}", "--host", f"h{count - 1}.bench.test",
                               "--kept", 32, "--size", bench_swaps.SIZE, "--seconds", time)
        ask(1)
        row = cost(server.server, lambda: ask(seconds))
        before = server.server.cpu()
        swaps = [server.swap(mark) for mark in range(1, 4)]
        return row | {"start_s": start, "document_mb": len(server.document(0)) / 1e6,
                      "swap_ms": statistics.median(swaps) * 1000, "swap_cpu_ms": (server.server.cpu() - before) / 3 * 1000,
                      "memory_mb": server.server.memory() / 1e3}
    finally:
        server.stop()


def evergate(options, place, section):
    """A server of one listener, of which `section` says all but the address."""
    port = free_port()
    config = place.sub(f"growth-{port}") / "evergate.toml"
    config.write_text(f'[admin]\nlisten = "127.0.0.1:{free_port()}"\n[runtime]\nworkers = 1\n'
                      f'state_dir = "{config.parent}/state"\nmax_connections = {MANY}\n[http.bench]\n'
                      f'listen = "127.0.0.1:{port}"\ntimeouts = {{ idle = "1h" }}\n{section}')
    return servers.Server("evergate", [options.binary, "run", "-c", config], port, place.folder, 0)


def targets(options, place, load, count, seconds):
    port = free_port()
    origin = servers.run_nginx("origin", place, port, 1, 1,
                               f'server {{ listen {port} backlog=4096; location / {{ return 200 "{ANSWER}"; }} }}')
    # All of 127.0.0.0/8 is this machine.
    listed = ", ".join(f'"127.1.{n // 250}.{n % 250 + 1}:{port}"' for n in range(count))
    try:
        server = evergate(options, place, f'proxy = "origin"\n[upstreams.origin]\ntargets = [{listed}]\npool = {{ idle = 64 }}\n')
        try:
            load.wrk(server, Work(), 2)
            return cost(server, lambda: load.wrk(server, Work(), seconds))
        finally:
            server.stop()
    finally:
        origin.stop()


def connections(options, place, load, count, seconds):
    # A server takes what comes; what may come is a matter of descriptors, of which each side needs one a connection.
    if count + SPARE > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        raise Broken(f"more descriptors are needed than {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}")
    server = evergate(options, place, f'respond = "{ANSWER}"\n')
    try:
        work = Work(connections=count)
        load.wrk(server, work, 2)
        return cost(server, lambda: load.wrk(server, work, seconds))
    finally:
        server.stop()


# HTTP/2: the preface, empty SETTINGS and a GET for / on stream 1 (HPACK's static entries 2, 6 and 4, and an authority).
H2_HEADERS = b"\x82\x86\x84\x41\x05bench"
H2 = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + len(H2_HEADERS).to_bytes(3, "big") + b"\1\5\0\0\0\1"
      + H2_HEADERS)
H1 = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"


def least_memory(server):
    """At rest: what is free is given back a little later."""
    least, end = server.memory(), time.monotonic() + 14
    while time.monotonic() < end:
        time.sleep(0.1)
        least = min(least, server.memory())
    return least


def idle(options, place, _load, kind, _seconds):
    if IDLE + SPARE > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        raise Broken("too few descriptors")
    place.make_certificate()
    tls = f'tls = {{ certificates = [{{ cert = "{place.cert}", key = "{place.key}" }}] }}\n' if kind == "TLS" else ""
    server = evergate(options, place, f'respond = "{ANSWER}"\n{tls}')
    streams = []
    try:
        context = ssl.create_default_context(cafile=place.cert)
        before = least_memory(server)
        for _ in range(IDLE):
            stream = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            if kind == "TLS":
                stream = context.wrap_socket(stream, server_hostname="127.0.0.1")
            streams.append(stream)
            stream.sendall(H2 if kind == "HTTP/2" else H1)
            answer = b""
            while ANSWER.encode() not in answer:
                piece = stream.recv(4096)
                if not piece:
                    raise Broken(f"closed: {answer[:100]}")
                answer += piece
        return {"kb_each": (least_memory(server) - before) / IDLE}
    finally:
        for stream in streams:
            stream.close()
        server.stop()


KINDS = {"routes": (routes, ROUTES), "targets": (targets, TARGETS), "connections": (connections, CONNECTIONS),
         "idle": (idle, ("HTTP/1", "TLS", "HTTP/2"))}


def run(options, seconds, quick):
    """Rows, and what went wrong."""
    # Of this process, and so of all that it starts.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows, broken = [], []
    for what, (measure, amounts) in KINDS.items():
        first = None
        for amount in amounts[:2] if quick and what != "idle" else amounts:
            with tempfile.TemporaryDirectory(prefix="evergate-bench") as name:
                Path(name).chmod(0o755)
                place = servers.Place(Path(name))
                try:
                    row = measure(options, place, Load(place, 1, options.wsload, options.streamload), amount, seconds)
                except (Broken, OSError) as error:
                    (rows.append({"what": what, "amount": amount, "skipped": str(error)}) if "descriptors" in str(error)
                     else broken.append(f"{what} {amount}: {error}"))
                    continue
            if "cpu" in row:
                first = first or row["cpu"]
                row["flat"] = row["cpu"] <= FLAT * first
                if row["errors"]:
                    broken.append(f"{what} {amount}: {row['errors']} errors, {row['note']}")
            rows.append({"what": what, "amount": amount} | row)
            print(f"  {what} {amount}", flush=True)
    return rows, broken


def show(rows):
    print(f"{'what':<13}{'number':>9}{'s/100k':>9}{'rate/s':>10}{'p99 ms':>9}  flat  more")
    for row in rows:
        if "skipped" in row:
            print(f"{row['what']:<13}{row['amount']:>9}  not run: {row['skipped']}")
        elif row["what"] == "idle":
            print(f"{row['what']:<13}{row['amount']:>9}  {row['kb_each']:.2f} KB each, of {IDLE:,}")
        else:
            more = ", ".join(f"{key} {row[key]:,.2f}" for key in ("start_s", "document_mb", "swap_ms", "swap_cpu_ms", "memory_mb")
                             if key in row)
            print(f"{row['what']:<13}{row['amount']:>9}{row['cpu']:>9.3f}{row['rate']:>10,.0f}{row['p99']:>9.2f}"
                  f"  {'yes' if row['flat'] else 'NO':<5} {more}")
