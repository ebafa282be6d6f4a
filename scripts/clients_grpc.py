"""grpcio: unary and streaming calls, trailers, codes, deadlines and cancellation (scripts/clients)."""

import queue
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path

import grpc

from clients_kit import NOISE, Place, check

SERVICES = ["clients.Clear", "clients.Secure"]
DEADLINE = 20
KINDS = {"Unary": "unary_unary", "Down": "unary_stream", "Up": "stream_unary", "Both": "stream_stream", "Wait": "unary_stream"}


@contextmanager
def opened(place: Place):
    """A channel of its own, which must stay connected as long as it is used."""
    options = [("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    address = f"localhost:{place.port}"
    if place.tls:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(place.ca).read_bytes()), options)
    else:
        channel = grpc.insecure_channel(address, options)
    states = []
    channel.subscribe(states.append, try_to_connect=True)
    with channel:
        yield channel
        lost = states.count(grpc.ChannelConnectivity.READY) > 1 or grpc.ChannelConnectivity.TRANSIENT_FAILURE in states
        assert not lost, f"the connection was lost: {states}"


def method(channel, service, name):
    """A method whose messages are bytes."""
    return getattr(channel, KINDS.get(name, "unary_unary"))(f"/{service}/{name}")


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded")


@check("grpc unary: metadata, trailers, large and compressed messages", each=SERVICES)
def unary(place, service):
    with opened(place) as channel:
        call = method(channel, service, "Unary")
        there = (("x-there-bin", b"\0\xff\x80"), ("x-plain", "words"))
        for message in (b"", b"x", NOISE[:100_000], NOISE):
            answer, told = call.with_call(message, DEADLINE, metadata=there)
            assert answer == message, len(answer)
            assert dict(told.initial_metadata())["x-early"] == "yes", told.initial_metadata()
            trailers = dict(told.trailing_metadata())
            assert trailers["x-length"] == str(len(message)) and trailers["x-back-bin"] == b"\0\xff\x80", trailers
            assert told.code() == grpc.StatusCode.OK
        assert call(b"z" * 100_000, DEADLINE, compression=grpc.Compression.Gzip) == b"z" * 100_000
        place.swaps.more(2)
        assert call(b"after swaps", DEADLINE) == b"after swaps"


@check("grpc server streaming", each=SERVICES)
def down(place, service):
    with opened(place) as channel:
        call = method(channel, service, "Down")(b"2000", DEADLINE)
        assert list(call) == [b"%d" % number for number in range(2000)]
        assert dict(call.trailing_metadata())["x-sent"] == "2000" and call.code() == grpc.StatusCode.OK
        assert list(method(channel, service, "Down")(b"0", DEADLINE)) == []


@check("grpc client streaming, through swaps", each=SERVICES)
def up(place, service):
    def messages():
        for number in range(300):
            yield NOISE[: number * 10]
            if number in (1, 150):
                place.swaps.more(1)

    with opened(place) as channel:
        assert method(channel, service, "Up")(messages(), DEADLINE) == b"300 448500"
        assert method(channel, service, "Up")(iter(()), DEADLINE) == b"0 0"


@check("grpc both ways at once, each message an answer to the last, through swaps", each=SERVICES)
def both(place, service):
    with opened(place) as channel:
        messages = queue.SimpleQueue()
        call = method(channel, service, "Both")(iter(messages.get, None), DEADLINE)
        for number in range(100):
            messages.put(b"<%d" % number)
            assert next(call) == (b"<%d" % number)[::-1]
            if number in (10, 60):
                place.swaps.more(1)
        messages.put(None)
        assert list(call) == [] and call.code() == grpc.StatusCode.OK


@check("grpc status codes, messages and trailers of failures", each=SERVICES)
def codes(place, service):
    with opened(place) as channel:
        call = method(channel, service, "Fail")
        for code in grpc.StatusCode:
            if code == grpc.StatusCode.OK:
                continue
            error = failure(lambda: call(f"{code.name} Grüße: 100 %\n".encode(), DEADLINE))
            assert (error.code(), error.details()) == (code, "Grüße: 100 %\n"), error
            assert dict(error.trailing_metadata())["x-why"] == "asked", error
        error = failure(lambda: method(channel, service, "Nothing")(b"", DEADLINE))
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


@check("grpc deadline: the client's, and the origin is told", each=SERVICES)
def deadline(place, service):
    with opened(place) as channel:
        name = uuid.uuid4().hex.encode()
        call = method(channel, service, "Wait")(name, 0.3)
        assert next(call) == b"waiting"
        error = failure(lambda: next(call))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert method(channel, service, "Seen")(name, DEADLINE) in (b"True", b"cancelled")


@check("grpc cancel: the origin is told", each=SERVICES)
def cancel(place, service):
    with opened(place) as channel:
        name = uuid.uuid4().hex.encode()
        call = method(channel, service, "Wait")(name, DEADLINE)
        assert next(call) == b"waiting"
        place.swaps.more(1)
        call.cancel()
        assert call.code() == grpc.StatusCode.CANCELLED, call.code()
        assert method(channel, service, "Seen")(name, DEADLINE) in (b"True", b"cancelled")


@check("grpc, 200 calls at once on one channel", each=SERVICES)
def at_once(place, service):
    with opened(place) as channel:
        call = method(channel, service, "Unary")
        calls = [(NOISE[:size], call.future(NOISE[:size], DEADLINE)) for size in range(0, 40_000, 200)]
        assert all(future.result() == sent for sent, future in calls)


@check("grpc, 10 channels in threads, through swaps", each=SERVICES)
def channels(place, service):
    failures = []

    def one(number):
        try:
            with opened(place) as channel:
                for turn in range(20):
                    sent = b"%d %d" % (number, turn)
                    assert method(channel, service, "Unary")(sent, DEADLINE) == sent
                place.swaps.more(1)
                assert len(list(method(channel, service, "Down")(b"10", DEADLINE))) == 10
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=[number]) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@check("grpc hears of our own errors in its words")
def unavailable(place):
    with opened(place) as channel:
        error = failure(lambda: method(channel, "clients.Nobody", "Unary")(b"", DEADLINE))
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
