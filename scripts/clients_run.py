"""Starts the origins and evergate, swaps what nobody uses, and runs every check (scripts/clients).

Usage: clients_run.py BINARY FOLDER"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from pathlib import Path

import trustme

import clients_curl  # noqa: F401  these register their checks, in this order
import clients_http  # noqa: F401
import clients_websocket  # noqa: F401
import clients_grpc  # noqa: F401
import clients_forward
from clients_kit import CHECKS, NOISE, Forward, Place, Skip, Swaps, run_check

BINARY, FOLDER = sys.argv[1], Path(sys.argv[2])
CHILDREN = []


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def start_origins():
    """The ports of the origins, and their CA."""
    ca = trustme.CA()
    pair = ca.issue_cert("localhost", "127.0.0.1", "::1")
    cert, key, authority = FOLDER / "origin.crt", FOLDER / "origin.key", FOLDER / "origin-ca.pem"
    ca.cert_pem.write_to_path(authority)
    pair.private_key_pem.write_to_path(key)
    for blob in pair.cert_chain_pems:
        blob.write_to_path(cert, append=True)
    script = Path(__file__).with_name("clients_origins.py")
    process = subprocess.Popen(
        [sys.executable, script, cert, key], stdout=subprocess.PIPE, stderr=open(FOLDER / "origins.log", "w"), text=True
    )
    CHILDREN.append(process)
    line = process.stdout.readline()
    if not line:
        raise SystemExit("the origins do not start:\n" + (FOLDER / "origins.log").read_text())
    return json.loads(line), authority


def make_files():
    www = FOLDER / "www" / "files"
    www.mkdir(parents=True)
    (www / "noise.bin").write_bytes(NOISE)
    (www / "small.txt").write_text("small\n")
    (www / "index.html").write_text("<h1>home</h1>\n")
    return FOLDER / "www"


def stable(ports, at, authority, www):
    """What no swap changes: two servers with the same routes, and all they lead to."""
    routes = {
        "h1": "h1",
        "h1s": "h1s",
        "h2c": "h2c",
        "h2": "h2",
        "auto": "auto",
        "ws": "websocket",
        "ws-h1": "h1",
        "ws-h2c": "h2c",
        "clients.Clear": "grpc_clear",
        "clients.Secure": "grpc_secure",
        "clients.Nobody": "nobody",
    }
    text = f"""
[admin]
listen = "127.0.0.1:{at["admin"]}"

[runtime]
state_dir = "{FOLDER}/state"
drain_timeout = "5s"

[access_log]
path = "{FOLDER}/access.log"

[http.clear]
listen = "127.0.0.1:{at["clear"]}"

[http.secure]
listen = "127.0.0.1:{at["secure"]}"
tls = {{ self_signed = ["localhost", "127.0.0.1"], redirect_http = "127.0.0.1:{at["redirect"]}" }}
"""
    for server in ("clear", "secure"):
        for path, upstream in routes.items():
            text += f'[[http.{server}.routes]]\nmatch.path = "/{path}/*"\nproxy = "{upstream}"\n'
        text += f"""
[[http.{server}.routes]]
match.path = "/packed/*"
compress = ["zstd", "br", "gzip"]
proxy = "h1"

[[http.{server}.routes]]
match.path = "/files/*"
files = {{ root = "{www}", cache_control = "max-age=60" }}

[[http.{server}.routes]]
match.path = "/hello"
respond = {{ body = "hello {{client_ip}}", headers = {{ x-scheme = "{{scheme}}" }} }}
"""
    anywhere = f"""destinations = {{ allow = ["127.0.0.0/8", "::1/128"], deny = ["{clients_forward.DENIED}", "10.0.0.0/8"] }}
"""
    for proxy, keys in {
        "open": "",
        "users": f'users = {{ {clients_forward.USER} = "{clients_forward.PASSWORD}" }}',
        "tls": 'tls = { self_signed = ["localhost", "127.0.0.1"] }',
    }.items():
        text += f'[forward.{proxy}]\nlisten = "127.0.0.1:{at[f"forward_{proxy}"]}"\n{anywhere}{keys}\n'
    upstreams = {
        "h1": (ports["clear"], "h1", False),
        "h1s": (ports["secure"], "h1", True),
        "h2c": (ports["clear"], "h2c", False),
        "h2": (ports["secure"], "h2", True),
        "auto": (ports["secure"], "auto", True),
        "websocket": (ports["websocket"], "h1", False),
        "grpc_clear": (ports["grpc_clear"], "h2c", False),
        "grpc_secure": (ports["grpc_secure"], "h2", True),
        "nobody": (at["nobody"], "h2c", False),
    }
    for name, (port, protocol, tls) in upstreams.items():
        text += f'[upstreams.{name}]\ntargets = ["127.0.0.1:{port}"]\nprotocol = "{protocol}"\n'
        text += f'tls = {{ ca = "{authority}", server_name = "localhost" }}\n' if tls else ""
    return text


def passing(number, at):
    """What every swap changes: a route of each server, a server, a forward proxy and its users, an upstream."""
    text = ""
    for server in ("clear", "secure"):
        text += f'[[http.{server}.routes]]\nmatch.path = "/passing/*"\nrespond = "{number}"\n'
        text += f'[[http.{server}.routes]]\nmatch.path = "/only-{number}/*"\nproxy = "passing"\n'
    text += f'[http.passing-{number % 2}]\nlisten = "127.0.0.1:{at["passing"]}"\nrespond = "server {number}"\n'
    text += f'[forward.passing-{number % 2}]\nlisten = "127.0.0.1:{at["forward_passing"]}"\nusers = {{ user-{number} = "x" }}\n'
    text += f'[upstreams.passing]\ntargets = ["127.0.0.1:{at["nobody"]}", "127.0.0.2:{1000 + number}"]\n'
    return text


def start_evergate(text, admin):
    config = FOLDER / "evergate.toml"
    config.write_text(text)
    process = subprocess.Popen([BINARY, "run", "-c", config], stderr=open(FOLDER / "evergate.log", "w"), stdout=subprocess.DEVNULL)
    CHILDREN.append(process)
    until = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"{admin}/readyz", timeout=5).close()
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("evergate is not ready:\n" + (FOLDER / "evergate.log").read_text()) from None
            time.sleep(0.02)
    authority = FOLDER / "evergate-ca.pem"
    command = [BINARY, "trust", "--pem", "-c", config]
    authority.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return process, authority


def run_checks(places, chosen):
    """How many passed, failed and were skipped."""
    passed, failed, skipped = 0, 0, 0
    for name, place, function, argument in CHECKS:
        if chosen and not any(word in f"{place} {name}" for word in chosen):
            continue
        begun = time.monotonic()
        try:
            swaps, rounds = asyncio.run(run_check(function, places[place], argument))
            took = time.monotonic() - begun
            print(f"ok   {place:9} {name} ({rounds} × in {took:.1f} s, {swaps} swaps)", flush=True)
            passed += 1
        except Skip as why:
            print(f"skip {place:9} {name}: {why}", flush=True)
            skipped += 1
        except Exception as failure:
            print(f"FAIL {place:9} {name}: {type(failure).__name__}: {failure}", flush=True)
            traceback.print_exc(limit=-3)
            failed += 1
    return passed, failed, skipped


def main():
    names = ("admin", "clear", "secure", "redirect", "passing", "nobody")
    names += ("forward_open", "forward_users", "forward_tls", "forward_passing")
    at = dict(zip(names, free_ports(len(names))))
    ports, authority = start_origins()
    www = make_files()
    base = stable(ports, at, authority, www)
    admin = f"http://127.0.0.1:{at['admin']}"
    process, ca = start_evergate(base + passing(0, at), admin)

    swaps = Swaps(
        admin,
        lambda number: base + passing(number, at),
        lambda number: [
            (f"http://127.0.0.1:{at['clear']}/passing/", str(number)),
            (f"http://127.0.0.1:{at['passing']}/", f"server {number}"),
        ],
    )
    swaps.start()
    places = {
        name: Place(name, at[port], str(ca), str(www), at["redirect"], swaps)
        for name, port in (("cleartext", "clear"), ("tls", "secure"))
    }
    places["forward"] = Forward(
        *(at[name] for name in ("forward_open", "forward_users", "forward_tls")),
        str(ca),
        *(ports[name] for name in ("clear", "secure", "websocket")),
        at["nobody"],
        str(authority),
        swaps,
    )
    passed, failed, skipped = run_checks(places, os.environ.get("CLIENTS_ONLY", "").split())
    swaps.stopping = True
    swaps.join(30)

    status = json.load(urllib.request.urlopen(f"{admin}/status", timeout=5))
    urllib.request.urlopen(urllib.request.Request(f"{admin}/stop", method="POST"), timeout=20).close()
    code = process.wait(20)
    for what, good in (
        (f"{swaps.count} swaps, all committed", swaps.failure is None),
        (f"{status['panics']} panics", status["panics"] == 0),
        (f"stopped with code {code}", code == 0),
    ):
        print(f"{'ok  ' if good else 'FAIL'} evergate  {what}")
        passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return failed > 0


try:
    sys.exit(main())
finally:
    for child in CHILDREN:
        if child.poll() is None:
            child.kill()
            child.wait()
