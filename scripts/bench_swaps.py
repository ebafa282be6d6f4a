"""`scripts/bench --swaps`: what requests notice of swaps.

A document of 10,000 routes, one worker, nobody pinned. `examples/swapload.rs` finds how many requests a second its clients
get flat out, and then sends 70 % of that, with new connections beside: a quiet round, a round with one swap a second, five
such pairs. nginx does the same with its reload by signal. Ratio: p99 with swaps to p99 without, by pair; the target holds
where the median is at most 1.05 or lies within what quiet rounds differ by."""

import json
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import bench_servers as servers
from bench_load import Load
from bench_servers import Broken, free_port

ROUTES, KEPT, FRESH, SHARE, PAIRS, MOST = 10_000, 32, 100, 0.7, 5, 1.05
SIZE = 60


def body(mark):
    return f"g{mark} ".ljust(SIZE, "y")


class Ours:
    name = "evergate"

    def __init__(self, binary, place, routes, workers=1):
        self.port, self.admin, self.routes = free_port(), free_port(), routes
        path = place.sub("swaps-evergate")
        self.head = (f'[admin]\nlisten = "127.0.0.1:{self.admin}"\n[runtime]\nworkers = {workers}\n'
                     f'state_dir = "{path}/state"\n[http.bench]\nlisten = "127.0.0.1:{self.port}"\n')
        config = path / "evergate.toml"
        config.write_text(self.document(0))
        self.server = servers.Server(self.name, [binary, "run", "-c", config], self.port, place.folder)

    def document(self, mark):
        text = body(mark)
        return self.head + "".join(f'[[http.bench.routes]]\nmatch.host = "h{i}.bench.test"\nrespond = "{text}"\n'
                                   for i in range(self.routes))

    def swap(self, mark):
        """Seconds until the answer, which comes when the new document serves."""
        document = self.document(mark).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}/reload", document,
                                         {"Content-Type": "application/toml"})
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                came = json.load(answer)
        except OSError as error:
            raise Broken(f"a swap: {error}") from error
        if came.get("outcome") != "committed":
            raise Broken(f"a swap: {came}")
        return time.monotonic() - begun

    def stop(self):
        self.server.stop()


class Nginx:
    name = "nginx"

    def __init__(self, _binary, place, routes, workers=1):
        self.port, self.routes, self.place, self.workers = free_port(), routes, place, workers
        self.server = servers.run_nginx("swaps-nginx", place, self.port, workers, None, self.document(0))

    def document(self, mark):
        text = body(mark)
        return "server_names_hash_max_size 131072; server_names_hash_bucket_size 128;\n" + "".join(
            f'server {{ listen 127.0.0.1:{self.port}; server_name h{i}.bench.test; location / {{ return 200 "{text}"; }} }}\n'
            for i in range(self.routes))

    def swap(self, mark):
        """Seconds until a new connection gets the new answer."""
        config = self.place.sub("swaps-nginx") / "nginx.conf"
        old = config.read_text()
        config.write_text(old.replace(body(mark - 1), body(mark)))
        begun = time.monotonic()
        self.server.process.send_signal(1)
        while time.monotonic() - begun < 30:
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", headers={"Host": "h77.bench.test"})
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    if answer.read().decode() == body(mark):
                        return time.monotonic() - begun
            except OSError:
                pass
            time.sleep(0.002)
        raise Broken("nginx does not take its new configuration")

    def stop(self):
        self.server.stop()


class Swapping:
    """One swap a second until it is told to end."""

    def __init__(self, server, mark):
        self.server, self.mark, self.times, self.error = server, mark, [], None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.over.wait(1 if self.times else 0.3):
                self.mark += 1
                self.times.append(self.server.swap(self.mark))
        except (Broken, OSError) as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def ask(load, swapload, server, seconds, rate):
    return load.report(seconds, swapload, f"127.0.0.1:{server.port}", "--host", "h77.bench.test", "--kept", KEPT,
                       "--fresh", FRESH if rate else 0, "--rate", rate, "--size", SIZE, "--seconds", seconds)


def pairs_of(server, load, swapload, pairs, seconds):
    ask(load, swapload, server, 1, 0)
    flat = ask(load, swapload, server, seconds, 0)
    rate = int(flat["requests"] / flat["seconds"] * SHARE)
    found, mark, took = [], 0, []
    failures = {"quiet": {}, "swaps": {}}
    for turn in range(pairs):
        quiet = ask(load, swapload, server, seconds, rate)
        with Swapping(server, mark) as swapping:
            busy = ask(load, swapload, server, seconds, rate)
        if swapping.error:
            raise Broken(swapping.error)
        mark, took = swapping.mark, took + swapping.times
        found.append({"quiet": quiet, "swaps": busy, "ratio": busy["p99"] / max(quiet["p99"], 0.001)})
        for name, one in (("quiet", quiet), ("swaps", busy)):
            for kind, count in one["failures"].items():
                failures[name][kind] = failures[name].get(kind, 0) + count
        print(f"  {server.name}, pair {turn + 1} of {pairs}: p99 {quiet['p99']:.2f} quiet, {busy['p99']:.2f} with "
              f"{len(swapping.times)} swaps", flush=True)
    quiet = sorted(p["quiet"]["p99"] for p in found)
    ratio = statistics.median(p["ratio"] for p in found)
    spread = quiet[-1] / max(quiet[0], 0.001)
    return {"server": server.name, "routes": server.routes, "rate": rate, "pairs": found, "ratio": ratio,
            "quiet_spread": spread, "swaps": len(took), "swap_ms": statistics.median(took) * 1000,
            "worst_swap_ms": max(took) * 1000, "failures": failures,
            "requests": sum(p["swaps"]["requests"] for p in found), "met": ratio <= max(MOST, spread)}


def run(options, seconds, quick):
    """Rows, and what went wrong."""
    rows, broken = [], []
    pairs = 1 if quick else PAIRS
    for kind in (Ours, Nginx):
        with tempfile.TemporaryDirectory(prefix="evergate-bench") as name:
            Path(name).chmod(0o755)
            place = servers.Place(Path(name))
            server = None
            try:
                server = kind(options.binary, place, ROUTES)
                rows.append(pairs_of(server, Load(place, None, None, None), options.swapload, pairs, seconds))
            except (Broken, OSError) as error:
                broken.append(f"{kind.name}: {error}")
            finally:
                if server:
                    server.stop()
    return rows, broken


def show(rows):
    print(f"{'server':<10}{'rate/s':>9}{'p99 quiet':>11}{'with swaps':>12}{'ratio':>8}{'quiet spread':>14}{'swap ms':>9}"
          f"{'worst':>8}{'swaps':>7}{'requests':>10}  failed with swaps")
    for row in rows:
        p99 = [statistics.median(p[which]["p99"] for p in row["pairs"]) for which in ("quiet", "swaps")]
        failed = ", ".join(f"{n} {kind}" for kind, n in row["failures"]["swaps"].items() if n) or "none"
        print(f"{row['server']:<10}{row['rate']:>9,}{p99[0]:>11.2f}{p99[1]:>12.2f}{row['ratio']:>8.2f}"
              f"{row['quiet_spread']:>14.2f}{row['swap_ms']:>9.0f}{row['worst_swap_ms']:>8.0f}{row['swaps']:>7}"
              f"{row['requests']:>10,}  {failed}")
        if row["server"] == "evergate":
            print(f"{'':<10}target: {MOST} x quiet or the quiet rounds' spread, {'met' if row['met'] else 'MISSED'}")
