#!/usr/bin/env python3
"""Connections that have asked once and then stay silent, and what they cost in memory.

Run as a script, it is the client: it opens connections one after the other, lets each have one answer, and says
so; it opens more for each number that it reads, and keeps them all until its standard input ends.
"""

import os
import resource
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from processes import Failure, memory, pinned

# Descriptors that the client needs for itself.
SPARE_DESCRIPTORS = 64
CLIENT_SECONDS = 60
# How long connections are idle before it is looked: whoever gives memory back for it may do so.
SETTLE_SECONDS = 3
# How many come in a second. Each has buffers for a moment; the faster they come, the more of them have these at
# the same time, and what a proxy has had once, it may keep.
PER_SECOND = 500


@dataclass(frozen=True)
class Idle:
    """Connections that are kept open and idle.

    The first of them make the proxy as large as arriving clients make it, by what these have for a moment. The
    others use that again; counted is what they add.
    """

    path: str
    first: int
    connections: int

    def growth(self, proxy, cores):
        """KiB of resident memory that each connection adds to the proxy."""
        command = [sys.executable, os.path.abspath(__file__), str(proxy.port), self.path]
        client = subprocess.Popen(pinned(command, cores), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)

        def settled(more):
            print(more, file=client.stdin, flush=True)
            if client.stdout.readline().strip() != "idle":
                client.kill()
                raise Failure(f"{proxy.name}: idle connections: {client.communicate()[1].strip()}")
            time.sleep(SETTLE_SECONDS)
            return memory(proxy.pid).now

        try:
            before = settled(self.first)
            added = self.connections - self.first
            return (settled(added) - before) * 1024 / added
        finally:
            client.stdin.close()
            client.wait(CLIENT_SECONDS)


def raise_descriptor_limit():
    """Let this process, and those that it starts, have as many descriptors as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def ask_once(port, path):
    """A connection that has had one answer."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench.example\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _some(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    missing = int(fields[b"content-length"]) - len(body)
    while missing > 0:
        missing -= len(_some(connection))
    if not head.startswith(b"HTTP/1.1 200 ") or fields.get(b"connection", b"") == b"close":
        raise ConnectionError(f"not kept alive: {head!r}")
    return connection


def _some(connection):
    received = connection.recv(65536)
    if not received:
        raise ConnectionError("closed in the middle of an answer")
    return received


def main():
    port, path = int(sys.argv[1]), sys.argv[2]
    most = raise_descriptor_limit()
    connections = []
    for line in sys.stdin:
        if most < len(connections) + int(line) + SPARE_DESCRIPTORS:
            sys.exit("so many connections need a higher limit of descriptors (ulimit -n)")
        begun = time.monotonic()
        for number in range(int(line)):
            time.sleep(max(0.0, begun + number / PER_SECOND - time.monotonic()))
            connections.append(ask_once(port, path))
        # Those that were opened first have been idle the longest.
        for connection in connections:
            connection.setblocking(False)
            try:
                connection.recv(1)
            except BlockingIOError:
                continue
            sys.exit("a connection was closed while it was idle")
        print("idle", flush=True)


if __name__ == "__main__":
    main()
