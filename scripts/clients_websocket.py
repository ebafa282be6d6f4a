"""Python `websockets`, and websockets on an HTTP/2 stream as browsers open them (scripts/clients)."""

import asyncio
import ssl
import uuid

import h2.config
import h2.connection
import h2.events
import websockets
import wsproto.frame_protocol
from websockets.extensions.permessage_deflate import PerMessageDeflate

from clients_kit import NOISE, Place, check


def context(place: Place):
    return ssl.create_default_context(cafile=place.ca) if place.tls else None


def connect(place: Place, name="any", route="ws", **options):
    return websockets.connect(f"{place.ws}/{route}/{name}", ssl=context(place), max_size=32 << 20, proxy=None, **options)


async def echoes(socket, message):
    await socket.send(message)
    got = await socket.recv()
    assert got == (message if isinstance(message, (str, bytes)) else type(message[0])().join(message)), (type(got), len(got))


@check("websockets: text, binary, empty, large, fragmented", each=["deflate", "no compression"])
async def messages(place, compression):
    given = "deflate" if compression == "deflate" else None
    async with connect(place, compression=given) as socket:
        packed = any(isinstance(extension, PerMessageDeflate) for extension in socket.protocol.extensions)
        assert packed == (given is not None), socket.response.headers
        for message in ("grüße 🦀", b"\0\x01\xff", "", b"", "a" * 125, "a" * 126, "a" * 65535, b"b" * 65536, NOISE, "long " * 400_000):
            await echoes(socket, message)
        await place.swaps.more_async(2)
        await echoes(socket, ["one ", "zwei ", "três"])
        await echoes(socket, [NOISE[:10], NOISE[10:100_000], b"", NOISE[100_000:]])
        await socket.send("!pieces")
        assert "".join([piece async for piece in socket.recv_streaming()]) == "one two three"


@check("websockets through hypercorn", each=["ws-h1", "ws-h2c"])
async def through_hypercorn(place, route):
    async with connect(place, route=route) as socket:
        for message in ("text", b"binary", "long " * 10_000):
            await echoes(socket, message)
        await place.swaps.more_async(2)
        await echoes(socket, "after swaps")
        if route == "ws-h2c":
            # After a Close hypercorn never ends the stream of HTTP/2 (WSStream sends StreamClosed, no EndData).
            socket.transport.abort()


@check("websockets: ping and pong, both ways")
async def pings(place):
    async with connect(place) as socket:
        for payload in (b"", b"x" * 125, None):
            assert await asyncio.wait_for(await socket.ping(payload), 10) >= 0
            await place.swaps.more_async(1)
        await socket.send("!ping")
        assert await socket.recv() == "True"


@check("websockets: subprotocol, and a refused one")
async def subprotocols(place):
    async with connect(place, subprotocols=["chat.v1", "chat.v2"]) as socket:
        assert socket.subprotocol == "chat.v2", socket.subprotocol
    try:
        async with websockets.connect(f"{place.ws}/hello", ssl=context(place), proxy=None):
            raise AssertionError("a page was taken for a websocket")
    except websockets.InvalidStatus as refused:
        assert refused.response.status_code == 200, refused


@check("websockets: close codes, both ways")
async def closes(place):
    async with connect(place) as teller:
        for code, reason in ((1000, ""), (1001, "gone"), (3005, "möglich"), (4999, "x" * 120)):
            name = uuid.uuid4().hex
            async with connect(place, name) as socket:
                await socket.close(code, reason)
            await teller.send(f"!how {name}")
            assert await teller.recv() == str(code)
        for code, reason in ((1000, "done"), (1011, "broken"), (4001, "go away")):
            async with connect(place) as socket:
                await socket.send(f"!close {code} {reason}")
                await socket.wait_closed()
                assert (socket.close_code, socket.close_reason) == (code, reason), (socket.close_code, socket.close_reason)


@check("websockets: either side breaks off")
async def breaks(place):
    async with connect(place) as teller:
        name = uuid.uuid4().hex
        async with connect(place, name) as socket:
            await echoes(socket, "here")
            socket.transport.abort()
        await teller.send(f"!how {name}")
        assert await teller.recv() == "1006"
        async with connect(place) as socket:
            await socket.send("!abort")
            await socket.wait_closed()
            assert socket.close_code == 1006, socket.close_code


@check("websockets: 50 at once, through swaps")
async def many(place):
    sockets = await asyncio.gather(*(connect(place) for _ in range(50)))
    for turn in range(4):
        await asyncio.gather(*(echoes(socket, f"{turn} {number}") for number, socket in enumerate(sockets)))
        await place.swaps.more_async(1)
    await asyncio.gather(*(socket.close() for socket in sockets))
    assert all(socket.close_code == 1000 for socket in sockets)


class OnStream:
    """A websocket on an HTTP/2 stream (RFC 8441), the way browsers do it."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.frames = wsproto.frame_protocol.FrameProtocol(client=True, extensions=[])
        self.status, self.data, self.ended, self.settled = None, bytearray(), False, False

    async def turn(self):
        """Sends what there is to send and takes what comes next."""
        self.writer.write(self.http.data_to_send())
        await self.writer.drain()
        came = await self.reader.read(65536)
        assert came, "the connection ended"
        for event in self.http.receive_data(came):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self.settled = True
            elif isinstance(event, h2.events.ResponseReceived):
                self.status = dict(event.headers)[":status"]
            elif isinstance(event, h2.events.DataReceived):
                self.frames.receive_bytes(bytes(event.data))
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended = True
            assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event

    async def open(self, authority, scheme, path):
        self.http.initiate_connection()
        while not self.settled:
            await self.turn()
        assert self.http.remote_settings.enable_connect_protocol == 1, self.http.remote_settings
        pseudo = {":method": "CONNECT", ":protocol": "websocket", ":scheme": scheme, ":path": path, ":authority": authority}
        self.http.send_headers(1, [*pseudo.items(), ("sec-websocket-version", "13"), ("origin", f"{scheme}://{authority}")])
        while self.status is None:
            await self.turn()
        assert self.status == "200", self.status

    async def send(self, frame: bytes):
        while frame:
            room = min(self.http.local_flow_control_window(1), self.http.max_outbound_frame_size)
            if room:
                self.http.send_data(1, frame[:room])
                frame = frame[room:]
            else:
                await self.turn()

    async def message(self):
        """The next message, or the next frame that is none."""
        whole = None
        while True:
            for frame in self.frames.received_frames():
                if frame.opcode > wsproto.frame_protocol.Opcode.BINARY:
                    return frame.payload
                whole = frame.payload if whole is None else whole + frame.payload
                if frame.message_finished:
                    return whole
            await self.turn()


@check("websocket on an HTTP/2 stream", each=["ws", "ws-h1", "ws-h2c"])
async def on_stream(place, route):
    options = context(place)
    if options:
        options.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("localhost", place.port, ssl=options)
    try:
        socket = OnStream(reader, writer)
        await socket.open(f"localhost:{place.port}", "https" if place.tls else "http", f"/{route}/stream")
        for message in ("grüße", b"\0\xff", "long " * 30_000):
            await socket.send(socket.frames.send_data(message, fin=True))
            got = await socket.message()
            assert bytes(got, "utf-8") == bytes(message, "utf-8") if isinstance(got, str) else bytes(got) == message, len(got)
            await place.swaps.more_async(1)
        if route == "ws-h2c":
            return  # without a Close, as above
        await socket.send(socket.frames.close(1000, "done"))
        assert (await socket.message())[0] == 1000
        socket.http.end_stream(1)
        while not socket.ended:
            await socket.turn()
    finally:
        writer.close()
