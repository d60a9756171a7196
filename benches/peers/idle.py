#!/usr/bin/env python3
"""Connections that have asked once and then stay silent, and what they cost in memory.

Run as a script, it is the client: it opens connections one after the other, lets each have one answer,
says so, and keeps them all until its standard input ends.
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


@dataclass(frozen=True)
class Idle:
    """Connections that are kept open and idle."""

    path: str
    connections: int

    def growth(self, proxy, cores):
        """KiB of resident memory that each connection adds to the proxy."""
        before = memory(proxy.pid).now
        command = [sys.executable, os.path.abspath(__file__), str(proxy.port), self.path, str(self.connections)]
        client = subprocess.Popen(pinned(command, cores), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)
        try:
            line = client.stdout.readline()
            if line.strip() != "idle":
                client.kill()
                raise Failure(f"{proxy.name}: idle connections: {client.communicate()[1].strip()}")
            time.sleep(SETTLE_SECONDS)
            return (memory(proxy.pid).now - before) * 1024 / self.connections
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
    port, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if raise_descriptor_limit() < count + SPARE_DESCRIPTORS:
        sys.exit(f"{count} connections need a higher limit of descriptors (ulimit -n)")
    connections = [ask_once(port, path) for _ in range(count)]
    # Those that were opened first have been idle the longest.
    for connection in connections:
        connection.setblocking(False)
        try:
            connection.recv(1)
        except BlockingIOError:
            continue
        sys.exit("a connection was closed while it was idle")
    print("idle", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
