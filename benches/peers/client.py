"""A small HTTP/1.1 client that notices everything.

wrk reconnects in silence; the checks need to know of each request whether it
was answered, by whom and how fast. This client keeps connections alive,
honours `Connection: close` and has no retries.
"""

import asyncio
import time
from dataclasses import dataclass, field

REQUEST_TIMEOUT = 10
# Larger than any document, so that reading one needs few turns of the loop.
BUFFER = 2 * 1024 * 1024


@dataclass(frozen=True)
class Reply:
    """One answered request. `at` is when it was sent, on the monotonic clock."""

    at: float
    seconds: float
    status: int
    backend: str
    closes: bool


@dataclass
class Tally:
    """What a crowd of connections saw."""

    replies: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    refused: int = 0


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port, tls=None):
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=BUFFER, ssl=tls))

    def gone(self):
        """Whether the server closed it while it was idle, which it may."""
        return self._reader.at_eof()

    async def get(self, path):
        return (await self.ask("GET", path))[0]

    async def ask(self, method, path, chunks=(), pause=0.0):
        """One exchange: the reply and its body. Chunks of the request's body are sent one by one."""
        at = time.monotonic()
        head = f"{method} {path} HTTP/1.1\r\nHost: check.example\r\n"
        if chunks:
            head += f"Content-Length: {sum(map(len, chunks))}\r\n"
        self._writer.write(f"{head}\r\n".encode())
        for chunk in chunks:
            self._writer.write(chunk)
            await self._writer.drain()
            await asyncio.sleep(pause)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.rstrip().split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await self._reader.readexactly(int(headers["content-length"]))
        reply = Reply(
            at=at,
            seconds=time.monotonic() - at,
            status=int(status_line.split()[1]),
            backend=headers.get("x-backend", ""),
            closes=headers.get("connection", "").lower() == "close",
        )
        return reply, body

    def close(self):
        self._writer.close()


class Crowd:
    """Connections that ask again and again, each pausing between its requests.

    `stop` ends it. With `draining` set, a refused connection is the expected
    end; before that, and for everything else that is not an answer, it is a
    failure.
    """

    def __init__(self, port, paths, pause):
        self.port = port
        self.paths = paths
        self.pause = pause
        self.tally = Tally()
        self.stop = False
        self.draining = False

    async def run(self):
        """One connection per path, until `stop` or until all were refused."""
        await asyncio.gather(*(self._visitor(path) for path in self.paths))

    async def _visitor(self, path):
        while not self.stop:
            try:
                connection = await Connection.open(self.port)
            except OSError as error:
                if self.draining and isinstance(error, ConnectionRefusedError):
                    self.tally.refused += 1
                    return
                self._fail("connect", error)
                await asyncio.sleep(self.pause)
                continue
            try:
                await self._use(connection, path)
            finally:
                connection.close()

    async def _use(self, connection, path):
        """Ask on one connection until it or the crowd ends."""
        while not self.stop and not connection.gone():
            try:
                reply = await asyncio.wait_for(connection.get(path), REQUEST_TIMEOUT)
            except (OSError, EOFError, ValueError, KeyError, asyncio.TimeoutError,
                    asyncio.LimitOverrunError) as error:
                self._fail(path, error)
                return
            self.tally.replies.append(reply)
            if reply.closes:
                return
            await asyncio.sleep(self.pause)

    def _fail(self, what, error):
        self.tally.failures.append(f"{what}: {type(error).__name__}: {error}")
