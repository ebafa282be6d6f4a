"""What the checks of scripts/clients share: where they go, and how they are found."""

import asyncio
import inspect
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

CHECKS = []
BOTH, CLEARTEXT, TLS = ("cleartext", "tls"), ("cleartext",), ("tls",)
TIME_LIMIT = 30
# What the large file and the large answers have.
NOISE = random.Random(7).randbytes(4 << 20)


class Skip(Exception):
    """What the check needs is not on this machine."""


def check(name: str, at=BOTH, each=None):
    """Registers a check, once for each place and, with `each`, for each of those arguments."""

    def register(function):
        for place in at:
            for argument in each or [None]:
                CHECKS.append((name if argument is None else f"{name}, {argument}", place, function, argument))
        return function

    return register


@dataclass
class Place:
    """A server of evergate as a client sees it."""

    name: str
    port: int
    ca: str
    www: str
    redirect_port: int
    swaps: "Swaps"

    @property
    def tls(self) -> bool:
        return self.name == "tls"

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://localhost:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws{'s' if self.tls else ''}://localhost:{self.port}"


@dataclass
class Forward:
    """The ports of evergate's forward proxies, and of where their clients go."""

    open: int
    users: int
    tls: int
    ca: str
    clear: int
    secure: int
    websocket: int
    nobody: int
    origin_ca: str
    swaps: "Swaps"


class Swaps(threading.Thread):
    """Reloads all the time, with other routes, servers and upstreams each time, and looks at what each reload gave."""

    def __init__(self, admin: str, document: Callable[[int], str], pages: Callable[[int], list[tuple[str, str]]]):
        super().__init__(daemon=True)
        self.admin, self.document, self.pages = admin, document, pages
        self.count, self.failure, self.stopping = 0, None, False
        self.turned = threading.Condition()

    def run(self):
        while not self.stopping and self.failure is None:
            try:
                self.swap(self.count + 1)
            except Exception as failure:
                self.failure = failure if not isinstance(failure, urllib.error.HTTPError) else failure.read().decode()
            with self.turned:
                self.count += self.failure is None
                self.turned.notify_all()
            time.sleep(0.03)

    def swap(self, number):
        request = urllib.request.Request(
            f"{self.admin}/reload", self.document(number).encode(), {"content-type": "application/toml"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            told = json.load(answer)
        assert told["outcome"] == "committed", told
        for url, page in self.pages(number):
            with urllib.request.urlopen(url, timeout=20) as answer:
                got = answer.read().decode()
            assert got == page, f"after swap {number} {url} has {got!r}"

    def reach(self, count: int):
        with self.turned:
            done = self.turned.wait_for(lambda: self.count >= count or self.failure is not None, 20)
        assert self.failure is None, f"the swaps: {self.failure!r}"
        assert done, "no swap for 20 s"

    def more(self, count: int):
        """Waits for so many more swaps."""
        self.reach(self.count + count)

    async def more_async(self, count: int):
        await asyncio.to_thread(self.more, count)


async def run_check(function, place: Place | Forward, argument):
    """Again and again until three swaps fell into it: one may have begun before. Gives the swaps and the rounds."""
    begun, rounds = place.swaps.count, 0
    while rounds == 0 or place.swaps.count < begun + 3:
        given = (place,) if argument is None else (place, argument)
        if inspect.iscoroutinefunction(function):
            await asyncio.wait_for(function(*given), TIME_LIMIT)
        else:
            await asyncio.wait_for(asyncio.to_thread(function, *given), TIME_LIMIT)
        assert place.swaps.failure is None, f"the swaps: {place.swaps.failure!r}"
        rounds += 1
    return place.swaps.count - begun, rounds
