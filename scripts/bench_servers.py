"""The servers that `scripts/bench` compares, and the origins behind them.

Each peer is started for one kind of work: one listener (`h1`, `tls` or `h2c`) and one site (`proxy`, `websocket`, `files`
or `answer`; without HTTP `tcp`, `udp`, `connect`, `socks5` and, with a process on either side, `tunnel`), tuned as its
manual advises and without an access log. All show the same certificate."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
ANSWER = "y" * 100
# Idle connections to the origin that a server may keep: more than any work has requests in flight.
POOL = 1024
FOREVER = 1_000_000_000
PORTS = iter(random.sample(range(20_000, 32_000), 4_000))
# What no package has is built here.
TOOLS = Path(__file__).resolve().parent.parent / "target/bench/tools"
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


class Broken(Exception):
    """A server or a measurement that did not come to be; told in the table."""


def program(name):
    places = (f"/usr/sbin/{name}", f"/sbin/{name}", f"{TOOLS}/bin/{name.removesuffix('-plain')}")
    return shutil.which(name) or next((p for p in places if Path(p).exists()), None)


def free_port():
    """Below those that the kernel gives to clients, or one of the thousands of connections of a case has it meanwhile;
    each once."""
    for port in PORTS:
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Broken("no free port below 32768")


def pinned(core, command):
    return command if core is None else ["taskset", "-c", str(core), *command]


class Server:
    """A process (tree) that listens on a port."""

    def __init__(self, name, command, port, folder, core=None, environment=None):
        self.name, self.port = name, port
        # What load generators remember of it: requests a second, bytes of an answer.
        self.pace, self.answer = 0, 0
        # What a forward proxy is asked for.
        self.origin = port
        path = folder / f"{name}.log"
        self.log = open(path, "wb")
        self.process = subprocess.Popen(pinned(core, [str(part) for part in command]), stdout=self.log,
                                        stderr=self.log, start_new_session=True,
                                        env=os.environ | (environment or {}))
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Broken(f"{name} does not start: {path.read_text(errors='replace').strip() or 'it says nothing'}")
            time.sleep(0.02)

    def tree(self):
        """The process and all below it."""
        children = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
                children.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += children.get(pid, [])
        return found

    def cpu(self):
        """User and system seconds of the tree so far, ended children included."""
        ticks = 0
        for pid in self.tree():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            ticks += sum(int(f) for f in fields[11:15])
        return ticks / TICKS

    def memory(self):
        """Kilobytes of the tree that are its own."""
        return sum(memory_of(pid) for pid in self.tree())

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def memory_of(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Tunnel:
    """The two ends of a tunnel, which are measured as one: `make` each in turn. Ready when an answer has come through."""

    def __init__(self, name, port, *make):
        self.name, self.port, self.origin, self.ends = name, port, port, []
        self.pace, self.answer = 0, 0
        try:
            for one in make:
                self.ends.append(one())
            self.wait()
        except (Broken, OSError):
            self.stop()
            raise
        self.idle = self.memory()

    def wait(self):
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as stream:
                    # In the words of `examples/streamload.rs`: one byte, please.
                    stream.sendall((1).to_bytes(8, "big"))
                    if stream.recv(1):
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise Broken(f"{self.name}: nothing comes through")
            time.sleep(0.05)

    def cpu(self):
        return sum(end.cpu() for end in self.ends)

    def memory(self):
        return sum(end.memory() for end in self.ends)

    def stop(self):
        for end in reversed(self.ends):
            end.stop()


class Place:
    """Where the servers of one run live, and what they share."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        for name, size in (("1k", 1024), ("10k", 10 * 1024), ("10m", 10 * 1024 * 1024)):
            (self.data / name).write_bytes(b"x" * size)
        self.cert, self.key, self.both = folder / "cert.pem", folder / "key.pem", folder / "both.pem"

    def make_certificate(self):
        """EC P-256, as most sites have today."""
        if self.cert.exists():
            return
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
             self.key, "-out", self.cert, "-days", "30", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost,IP:127.0.0.1"], capture_output=True, text=True)
        if made.returncode != 0:
            raise Broken(f"no certificate: {made.stderr.strip()}")
        self.both.write_bytes(self.cert.read_bytes() + self.key.read_bytes())

    def make_authority(self):
        """A CA and what it has signed, for those that do not take a certificate that signs itself. Returns CA, certificate,
        key, and certificate and key as PKCS #12 without a strong cipher, which rathole's reader does not know."""
        ca, cert, key, p12 = (self.folder / name for name in ("ca.pem", "leaf.pem", "leaf.key", "leaf.p12"))
        if p12.exists():
            return ca, cert, key, p12
        ca_key, request, more = (self.folder / name for name in ("ca.key", "leaf.csr", "leaf.ext"))
        more.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        old = ["-certpbe", "PBE-SHA1-3DES", "-keypbe", "PBE-SHA1-3DES", "-macalg", "sha1"]
        for command in (
            ["req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", "30", "-subj", "/CN=bench"],
            ["req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=localhost"],
            ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", cert, "-days", "30",
             "-extfile", more],
            ["pkcs12", "-export", "-out", p12, "-inkey", key, "-in", cert, "-certfile", ca, "-passout", "pass:bench", *old],
        ):
            made = subprocess.run(["openssl", *command], capture_output=True, text=True)
            if made.returncode != 0:
                raise Broken(f"no certificate: {made.stderr.strip()}")
        return ca, cert, key, p12

    def sub(self, name):
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path


def run_nginx(name, place, port, workers, core, body, stream=""):
    """An nginx of its own; `body` is what stands in its http block, or `stream` in the other one."""
    if not program("nginx"):
        raise Broken("nginx is not installed")
    path = place.sub(name)
    config = path / "nginx.conf"
    config.write_text(f"""
{f'load_module {NGINX_STREAM};' if stream else ''}
daemon off;
master_process on;
worker_processes {workers};
worker_rlimit_nofile 16384;
pid {path}/pid;
error_log {path}/error.log warn;
{'user root;' if os.geteuid() == 0 else ''}
events {{ worker_connections 8192; }}
{f'stream {{ {stream} }}' if stream else ''}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests {FOREVER};
    client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/f;
    uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
    {body}
}}
""")
    return Server(name, [program("nginx"), "-p", path, "-c", config], port, place.folder, core)


def http_origin(place, core):
    port = free_port()
    return run_nginx("origin", place, port, 1, core, f"""
    open_file_cache max=100;
    server {{
        listen 127.0.0.1:{port} reuseport backlog=4096;
        location = /small {{ return 200 "{ANSWER}"; }}
        location / {{ root {place.data}; }}
    }}""")


def echo_origin(wsload, place, core):
    port = free_port()
    return Server("echo", [wsload, "echo", f"127.0.0.1:{port}"], port, place.folder, core)


def stream_origin(streamload, place, core):
    port = free_port()
    return Server("origin", [streamload, "origin", f"127.0.0.1:{port}"], port, place.folder, core)


def nginx(place, listener, site, target, workers, core, name="nginx"):
    port = free_port()
    if site in ("connect", "socks5", "tunnel"):
        return None
    if site in ("tcp", "udp"):
        if not NGINX_STREAM.exists():
            raise Broken("libnginx-mod-stream is not installed")
        return run_nginx(name, place, port, workers, core, "", f"""
    server {{
        listen 127.0.0.1:{port} reuseport backlog=4096;
        listen 127.0.0.1:{port} udp reuseport;
        proxy_pass 127.0.0.1:{target};
        proxy_timeout 60s;
    }}""")
    kind = {"h1": "", "tls": "ssl http2", "h2c": "http2"}[listener]
    tls = f"""
        ssl_certificate {place.cert};
        ssl_certificate_key {place.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:10m;
        ssl_session_timeout 1h;""" if listener == "tls" else ""
    forwarded = """
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;"""
    location = {
        "proxy": f"""
            proxy_pass http://origin;
            proxy_set_header Connection "";{forwarded}""",
        "websocket": f"""
            proxy_pass http://origin;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout 1h;{forwarded}""",
        "files": f"root {place.data};",
        "answer": f'return 200 "{ANSWER}";',
    }[site]
    upstream = f"""
    upstream origin {{ server 127.0.0.1:{target}; keepalive {POOL}; keepalive_requests {FOREVER}; }}""" if target else ""
    files = "open_file_cache max=100;" if site == "files" else ""
    return run_nginx(name, place, port, workers, core, f"""
    {files}{upstream}
    server {{
        listen 127.0.0.1:{port} {kind} reuseport backlog=4096;{tls}
        location / {{ {location} }}
    }}""")


def haproxy(place, listener, site, target, workers, core):
    if site in ("files", "connect", "socks5", "udp", "tunnel"):
        return None
    port = free_port()
    path = place.sub("haproxy")
    if site == "tcp":
        config = path / "haproxy.cfg"
        config.write_text(f"""
global
    nbthread {workers}
    # Each may need two pipes besides its sockets.
    maxconn 2048
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen bench
    bind 127.0.0.1:{port} backlog 4096
    server origin 127.0.0.1:{target}
""")
        return Server("haproxy", [program("haproxy"), "-db", "-f", config], port, place.folder, core)
    kind = {"h1": "", "tls": f"ssl crt {place.both} alpn h2,http/1.1", "h2c": "proto h2"}[listener]
    what = f"""
    http-request return status 200 content-type text/plain string {ANSWER}
""" if site == "answer" else f"""
    option forwardfor
    http-request set-header X-Forwarded-Proto {'https' if listener == 'tls' else 'http'}
    http-request set-header X-Forwarded-Host %[req.hdr(Host)]
    default_backend origin
backend origin
    server origin 127.0.0.1:{target} pool-max-conn {POOL}
"""
    config = path / "haproxy.cfg"
    config.write_text(f"""
global
    nbthread {workers}
    maxconn 8192
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
    timeout tunnel 1h
frontend bench
    bind 127.0.0.1:{port} {kind} backlog 4096
{what}
""")
    return Server("haproxy", [program("haproxy"), "-db", "-f", config], port, place.folder, core)


def squid(place, listener, site, target, workers, core):
    if site != "connect":
        return None
    port = free_port()
    path = place.sub("squid")
    path.chmod(0o777)
    config = path / "squid.conf"
    config.write_text(f"""
http_port 127.0.0.1:{port}
http_access allow all
cache deny all
access_log none
cache_log {path}/cache.log
pid_filename {path}/pid
coredump_dir {path}
workers {workers}
shutdown_lifetime 0 seconds
""")
    alone = ["-N"] if workers == 1 else ["--foreground"]
    return Server("squid", [program("squid"), *alone, "-f", config], port, place.folder, core)


def tinyproxy(place, listener, site, target, workers, core):
    if site != "connect":
        return None
    port = free_port()
    path = place.sub("tinyproxy")
    config = path / "tinyproxy.conf"
    config.write_text(f"""
Port {port}
Listen 127.0.0.1
Timeout 600
MaxClients 4096
Allow 127.0.0.1
LogLevel Error
DisableViaHeader Yes
""")
    return Server("tinyproxy", [program("tinyproxy"), "-d", "-c", config], port, place.folder, core)


def danted(place, listener, site, target, workers, core):
    if site != "socks5":
        return None
    port = free_port()
    path = place.sub("danted")
    config = path / "danted.conf"
    config.write_text(f"""
errorlog: {path}/errors
internal: 127.0.0.1 port = {port}
external: lo
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
""")
    return Server("danted", [program("danted"), "-f", config, "-p", path / "pid", "-N", workers], port, place.folder, core)


def caddy(place, listener, site, target, workers, core):
    if site in ("tcp", "udp", "connect", "socks5", "tunnel"):
        return None
    port = free_port()
    path = place.sub("caddy")
    what = {
        "files": f"root * {place.data}\n    file_server",
        "answer": f'respond "{ANSWER}"',
    }.get(site, f"""reverse_proxy 127.0.0.1:{target} {{
        transport http {{
            compression off
            keepalive_idle_conns {POOL}
            keepalive_idle_conns_per_host {POOL}
        }}
    }}""")
    config = path / "Caddyfile"
    config.write_text(f"""
{{
    admin off
    auto_https off
    log {{
        level ERROR
    }}
    servers {{
        protocols h1 h2 h2c
    }}
}}
{'https' if listener == 'tls' else 'http'}://:{port} {{
    bind 127.0.0.1
    {f'tls {place.cert} {place.key}' if listener == 'tls' else ''}
    {what}
}}
""")
    environment = {"GOMAXPROCS": str(workers), "HOME": str(path), "XDG_CONFIG_HOME": str(path), "XDG_DATA_HOME": str(path)}
    return Server("caddy", [program("caddy"), "run", "--adapter", "caddyfile", "--config", config], port, place.folder,
                  core, environment)


def rathole_with(transport):
    """rathole over TLS, as ours is, or without any encryption, for what that costs."""
    name = "rathole" if transport == "tls" else "rathole-plain"

    def start(place, listener, site, target, workers, core):
        if site != "tunnel":
            return None
        port, between = free_port(), free_port()
        ca, _, _, p12 = place.make_authority()
        path = place.sub(name)
        ends = {
            "server": (f'bind_addr = "127.0.0.1:{between}"', f'pkcs12 = "{p12}"\npkcs12_password = "bench"',
                       f'bind_addr = "127.0.0.1:{port}"'),
            "client": (f'remote_addr = "127.0.0.1:{between}"', f'trusted_root = "{ca}"\nhostname = "localhost"',
                       f'local_addr = "127.0.0.1:{target}"'),
        }

        def end(side, wait):
            where, tls, service = ends[side]
            tls = f"[{side}.transport.tls]\n{tls}" if transport == "tls" else ""
            config = path / f"{side}.toml"
            config.write_text(f'''
[{side}]
default_token = "bench"
{where}
[{side}.transport]
type = "{transport}"
{tls}
[{side}.services.bench]
{service}
''')
            return lambda: Server(f"{name}-{side}", [program("rathole"), f"--{side}", config], wait, place.folder, core,
                                  {"RUST_LOG": "error"})

        # The public port is there once the client is.
        return Tunnel(name, port, end("server", between), end("client", port))

    return start


def evergate_tunnel(binary, place, target, workers, core):
    port, between = free_port(), free_port()
    ca, cert, key, _ = place.make_authority()
    token = "correct-horse-battery-staple"
    edge = f'''
[tunnels.bench]
listen = "127.0.0.1:{between}"
tls = {{ certificates = [{{ cert = "{cert}", key = "{key}" }}] }}
tokens = {{ home = "{token}" }}
[tcp.bench]
listen = "127.0.0.1:{port}"
upstream = "tunnel:home/bench"
'''
    home = f'''
[agents.home]
server = "127.0.0.1:{between}"
token = "{token}"
tls = {{ server_name = "localhost", ca = "{ca}" }}
services = {{ bench = "tcp://127.0.0.1:{target}" }}
'''

    def end(name, text, wait):
        path, admin = place.sub(name), free_port()
        config = path / "evergate.toml"
        config.write_text(f'''
[admin]
listen = "127.0.0.1:{admin}"

[runtime]
workers = {workers}
state_dir = "{path}/state"
{text}''')
        return lambda: Server(name, [binary, "run", "-c", config], wait or admin, place.folder, core)

    return Tunnel("evergate", port, end("evergate-edge", edge, port), end("evergate-home", home, None))


def evergate(binary, place, listener, site, target, workers, core):
    if site == "tunnel":
        return evergate_tunnel(binary, place, target, workers, core)
    port = free_port()
    path = place.sub("evergate")
    what = {"files": f'files = "{place.data}"', "answer": f'respond = "{ANSWER}"'}.get(site, 'proxy = "origin"')
    tls = f'tls = {{ certificates = [{{ cert = "{place.cert}", key = "{place.key}" }}] }}' if listener == "tls" else ""
    upstream = f"""
[upstreams.origin]
targets = ["127.0.0.1:{target}"]
pool = {{ idle = {POOL} }}
""" if target else ""
    config = path / "evergate.toml"
    section = f"""
[http.bench]
listen = "127.0.0.1:{port}"
{what}
{tls}
{upstream}"""
    if site in ("tcp", "udp"):
        # Whoever waits for the start connects.
        section = "".join(f"""
[{kind}.bench]
listen = "127.0.0.1:{port}"
upstream = "127.0.0.1:{target}"
""" for kind in dict.fromkeys(("tcp", site)))
    elif site in ("connect", "socks5"):
        section = f"""
[forward.bench]
listen = "127.0.0.1:{port}"
destinations = {{ allow = ["127.0.0.0/8"] }}
"""
    config.write_text(f"""
[admin]
listen = "127.0.0.1:{free_port()}"

[runtime]
workers = {workers}
state_dir = "{path}/state"
{section}""")
    return Server("evergate", [binary, "run", "-c", config], port, place.folder, core)


PEERS = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy, "squid": squid, "tinyproxy": tinyproxy, "danted": danted,
         "rathole": rathole_with("tls"), "rathole-plain": rathole_with("tcp")}
