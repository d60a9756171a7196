"""The HTTP clients of the soak test: those that look at each answer, and generators for the mass."""

import asyncio
import random
import ssl
import time
from collections import Counter, defaultdict
from dataclasses import dataclass

import proxies
from client import Connection
from generators import H2load, Wrk

# On the service `steady`: what asks, and for how many seconds at a time.
GENERATORS = (
    (Wrk("/steady/1k", 16, patience=60), 4),
    (H2load("/steady/1k", 8, 8), 4),
    (Wrk("/steady/1k", 16, close=True, patience=60), 2),
    (H2load("/steady/1k", 8, 8, tls=True), 4),
    (Wrk("/steady/1m", 4, patience=60), 2),
    (H2load("/steady/1m", 2, 2, tls=True), 2),
    (Wrk("/steady/up", 4, body=1 << 20, patience=60), 2),
)

# Longest time for one exchange; on a machine that is not quiet, large ones take their time.
PATIENCE = 60


class Tally:
    """What came of requests, by service."""

    def __init__(self):
        self.requests = Counter()
        # When, and what.
        self.failures = defaultdict(list)

    def failed(self, service, what):
        self.failures[service].append((time.time(), what))


@dataclass(frozen=True)
class Errand:
    """What a client asks for again and again, and the answer that it wants."""

    name: str
    method: str
    path: str
    answer: bytes
    pause: float
    chunks: tuple = ()
    chunk_pause: float = 0.0


def errands(document):
    """What is asked of the service `web`, and by how many clients, half of them over TLS."""
    small, received = proxies.BODY_1K.encode(), b"received"
    return {
        Errand("small", "GET", "/1k", small, 0.05): 12,
        Errand("large", "GET", "/1m", document, 0.2): 4,
        Errand("slow", "GET", "/slow", document, 0.1): 4,
        Errand("upload", "POST", "/up", received, 0.2, (document[:1 << 16],) * 16): 4,
        Errand("slow upload", "POST", "/up", received, 0.1, (document[:1 << 10],) * 20, 0.1): 4,
    }


class Visitors:
    """Clients of the service `web`: each makes connections, and uses each for some requests."""

    def __init__(self, site, tally):
        self._site = site
        self._tally = tally
        self._errands = errands(site.document)
        self._tls = ssl.create_default_context(cafile=site.certificate)
        self._tls.check_hostname = False
        self.stop = False
        self.count = sum(self._errands.values())

    async def run(self):
        """Until `stop` is set."""
        visits = []
        for errand, count in self._errands.items():
            visits += [self._visit(errand, number % 2 == 1) for number in range(count)]
        await asyncio.gather(*visits)

    async def _visit(self, errand, by_tls):
        port, tls = (self._site.tls, self._tls) if by_tls else (self._site.plain, None)
        while not self.stop:
            try:
                connection = await asyncio.wait_for(Connection.open(port, tls), PATIENCE)
            except (OSError, asyncio.TimeoutError) as error:
                self._failed(errand, f"connect: {type(error).__name__}: {error}")
                await asyncio.sleep(errand.pause)
                continue
            try:
                for _ in range(random.randrange(1, 200)):
                    if self.stop or connection.gone() or not await self._ask(connection, errand):
                        break
                    await asyncio.sleep(errand.pause)
            finally:
                connection.close()

    async def _ask(self, connection, errand):
        """One exchange; whether there may be another one on this connection."""
        exchange = connection.ask(errand.method, errand.path, errand.chunks, errand.chunk_pause)
        try:
            reply, body = await asyncio.wait_for(exchange, PATIENCE)
        except (OSError, EOFError, ValueError, KeyError, asyncio.TimeoutError,
                asyncio.LimitOverrunError) as error:
            self._failed(errand, f"{type(error).__name__}: {error}")
            return False
        if reply.status != 200:
            self._failed(errand, f"status {reply.status}")
        elif body != errand.answer:
            self._failed(errand, f"another body, of {len(body)} bytes")
        else:
            self._tally.requests["web"] += 1
        return not reply.closes

    def _failed(self, errand, what):
        self._tally.failed("web", f"{errand.name}: {what}")
