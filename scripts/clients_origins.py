"""The servers behind evergate in scripts/clients, in one process: hypercorn (HTTP/1.1, h2c, HTTP/2 over TLS), a websocket
echo of `websockets`, and gRPC with and without TLS.

Usage: clients_origins.py CERT KEY. Prints its ports as one line of JSON when all of them listen, and runs until killed."""

import asyncio
import errno
import hashlib
import json
import socket
import sys
from collections import defaultdict
from urllib.parse import parse_qs

import grpc
import websockets
from hypercorn.asyncio import serve
from hypercorn.config import Config

from clients_kit import NOISE

CERT, KEY = sys.argv[1:3]


class Seen:
    """What became of things, by the name their client gave them; who asks too early waits."""

    def __init__(self):
        self.known = defaultdict(lambda: asyncio.get_running_loop().create_future())

    def tell(self, name, what):
        if not self.known[name].done():
            self.known[name].set_result(what)

    async def ask(self, name):
        return await asyncio.wait_for(asyncio.shield(self.known[name]), 10)


SEEN = Seen()


# --- HTTP ---


async def body_of(receive):
    """Length and SHA-256 of a request's body."""
    digest, length = hashlib.sha256(), 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError(message["type"])
        digest.update(message["body"])
        length += len(message["body"])
        if not message.get("more_body"):
            return length, digest.hexdigest()


async def http(scope, receive, send):
    """`/ANY/what`: the first part only chooses the route."""
    what = scope["path"].split("/", 2)[2]
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    length, digest = await body_of(receive)

    async def answer(pieces, *fields, status=200):
        await send({"type": "http.response.start", "status": status, "headers": list(fields)})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    if what == "echo":
        fields = defaultdict(list)
        for name, value in scope["headers"]:
            fields[name.decode()].append(value.decode("latin-1"))
        seen = dict(method=scope["method"], version=scope["http_version"], fields=fields, length=length, sha256=digest)
        seen["client"] = scope["client"][0]
        await answer([json.dumps(seen).encode()], (b"content-type", b"application/json"))
    elif what == "noise":
        size = int(query["n"])
        pieces = (NOISE[at : min(at + 50_000, size)] for at in range(0, size, 50_000))
        known = [(b"content-length", query["n"].encode())] if "known" in query else []
        await answer(pieces, (b"content-type", b"application/octet-stream"), *known)
    elif what == "page":
        await answer([b"<p>All work and no play makes Jack a dull boy.</p>\n" * 2000], (b"content-type", b"text/html"))
    elif what == "cookies":
        await answer([b"set"], (b"set-cookie", b"first=1; Path=/"), (b"set-cookie", b"second=a=b; Path=/; HttpOnly"))
    elif what == "status":
        await answer([], (b"content-length", b"0"), status=int(query["code"]))
    elif what == "events":
        # The second event comes when the client says that it has the first.
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
        await SEEN.ask(query["name"])
        await send({"type": "http.response.body", "body": b"data: two\n\n"})
    elif what == "seen":
        SEEN.tell(query["name"], True)
        await answer([], status=204)
    else:
        await answer([b"no such thing"], status=404)


async def websocket(receive, send):
    """An echo, for websockets that reach hypercorn."""
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        else:
            return


async def application(scope, receive, send):
    if scope["type"] == "http":
        await http(scope, receive, send)
    elif scope["type"] == "websocket":
        await websocket(receive, send)
    else:
        for _ in range(2):
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})


# --- websockets ---


async def echo(connection):
    """Gives back what comes, as it came. `/ws/NAME`: how it ended is kept under NAME."""
    name = connection.request.path.rsplit("/", 1)[1]
    if name == "greet":
        await connection.send("hello")
        return
    try:
        async for message in connection:
            if isinstance(message, bytes) or not message.startswith("!"):
                await connection.send(message)
                continue
            command, *rest = message[1:].split(" ", 2)
            if command == "close":
                await connection.close(int(rest[0]), rest[1])
            elif command == "abort":
                connection.transport.abort()
            elif command == "how":
                await connection.send(str(await SEEN.ask(rest[0])))
            elif command == "ping":
                pong = await connection.ping(b"from the origin")
                await connection.send(f"{await pong >= 0}")
            elif command == "pieces":
                await connection.send(["one ", "two ", "three"])
    finally:
        SEEN.tell(name, connection.close_code)


def chosen(connection, offered):
    return "chat.v2" if "chat.v2" in offered else None


# --- gRPC ---


async def unary(request, context):
    given = dict(context.invocation_metadata())
    context.set_trailing_metadata((("x-length", str(len(request))), ("x-back-bin", given.get("x-there-bin", b""))))
    await context.send_initial_metadata((("x-early", "yes"),))
    return request


async def down(request, context):
    for number in range(int(request)):
        yield b"%d" % number
    context.set_trailing_metadata((("x-sent", request.decode()),))


async def up(requests, context):
    count = size = 0
    async for request in requests:
        count, size = count + 1, size + len(request)
    return b"%d %d" % (count, size)


async def both(requests, context):
    async for request in requests:
        yield request[::-1]


async def fail(request, context):
    code, details = request.decode().split(" ", 1)
    context.set_trailing_metadata((("x-why", "asked"),))
    await context.abort(grpc.StatusCode[code], details)


async def wait(request, context):
    """Sends one message and nothing more; that it was cancelled is kept under the name in the request."""
    try:
        yield b"waiting"
        await asyncio.sleep(60)
    finally:
        SEEN.tell(request.decode(), context.cancelled() or "cancelled")


async def seen(request, context):
    return str(await SEEN.ask(request.decode())).encode()


def grpc_service():
    """All methods for every service name, messages as bytes."""
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Wait": grpc.unary_stream_rpc_method_handler(wait),
        "Seen": grpc.unary_unary_rpc_method_handler(seen),
    }
    return [grpc.method_handlers_generic_handler(name, methods) for name in ("clients.Clear", "clients.Secure")]


# --- all of them ---


def listening():
    """The same port of both families; where the machine has no IPv6, of IPv4 alone."""
    while True:
        four = socket.socket()
        four.bind(("127.0.0.1", 0))
        held = [four]
        try:
            six = socket.socket(socket.AF_INET6)
            six.bind(("::1", four.getsockname()[1]))
            held.append(six)
        except OSError as why:
            if why.errno == errno.EADDRINUSE:
                continue
        for each in held:
            each.listen(1024)
        return held


async def main():
    clear, secure = listening(), listening()
    config = Config()
    config.insecure_bind = [f"fd://{each.fileno()}" for each in clear]
    config.bind = [f"fd://{each.fileno()}" for each in secure]
    config.certfile, config.keyfile = CERT, KEY
    # Idle connections stay: who closes first is no subject here.
    config.keep_alive_timeout, config.keep_alive_max_requests = 600, 1 << 30
    config.loglevel = "WARNING"

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
    server.add_generic_rpc_handlers(grpc_service())
    grpc_clear = server.add_insecure_port("127.0.0.1:0")
    pair = [(open(KEY, "rb").read(), open(CERT, "rb").read())]
    grpc_secure = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    await server.start()

    echoes = await websockets.serve(echo, "127.0.0.1", 0, max_size=32 << 20, select_subprotocol=chosen)
    ports = dict(
        clear=clear[0].getsockname()[1],
        secure=secure[0].getsockname()[1],
        grpc_clear=grpc_clear,
        grpc_secure=grpc_secure,
        websocket=echoes.sockets[0].getsockname()[1],
    )
    print(json.dumps(ports), flush=True)
    await serve(application, config)


asyncio.run(main())
