"""The gRPC and WebSocket clients of soak.py, in a process of their own because they need two packages.

soak_peers.py PORT: makes calls and tunnels until its standard input ends, then prints what came of
them: by service, how many went well, and those that did not.
"""

import json
import random
import sys
import threading
import time

import grpc
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

# Longest time for a call or an answer.
PATIENCE = 60
LARGE = bytes(range(256)) * 4096
stopping = threading.Event()


class Tally:
    """What came of one service's calls or tunnels."""

    def __init__(self):
        self._lock = threading.Lock()
        self.requests = 0
        self.failures = []

    def well(self):
        with self._lock:
            self.requests += 1

    def failed(self, what):
        with self._lock:
            self.failures.append((time.time(), what))


def expect(got, expected):
    if got != expected:
        raise ValueError(f"got {len(got)} pieces or bytes, not what was expected")


def slowly(count):
    """Numbers, with a pause between them."""
    for number in range(count):
        yield str(number).encode()
        time.sleep(0.2)


def calls(channel):
    """A way to make a call of each shape, and check the answer."""
    def path(method):
        return f"/tidegate.Test/{method}"

    echo = channel.unary_unary(path("Echo"))
    count = channel.unary_stream(path("Count"))
    join = channel.stream_unary(path("Join"))
    chat = channel.stream_stream(path("Chat"))
    numbers = [str(number).encode() for number in range(100)]
    return [
        lambda: expect(echo(b"small", timeout=PATIENCE), b"small"),
        lambda: expect(echo(LARGE, timeout=PATIENCE), LARGE),
        lambda: expect(list(count(b"100", timeout=PATIENCE)), numbers),
        lambda: expect(join(iter(numbers), timeout=PATIENCE), b"".join(numbers)),
        lambda: expect(list(chat(slowly(10), timeout=PATIENCE)), [b"re: " + n for n in numbers[:10]]),
    ]


def call(port, tally, number):
    """Make calls on channels, each of which lasts for some."""
    chance = random.Random(number)
    # A repetition in silence would hide a failure.
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1),
               ("grpc.max_receive_message_length", -1)]
    while not stopping.is_set():
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            ways = calls(channel)
            for _ in range(chance.randrange(1, 200)):
                if stopping.wait(0.1):
                    break
                way = chance.randrange(len(ways))
                try:
                    ways[way]()
                    tally.well()
                except grpc.RpcError as error:
                    tally.failed(f"call {way}: {error.code().name}: {error.details()}")
                except ValueError as error:
                    tally.failed(f"call {way}: {error}")


def talk(port, tally, number):
    """Send messages through tunnels, each of which lasts for some, and one for as long as it can."""
    chance = random.Random(number)
    while not stopping.is_set():
        try:
            with connect(f"ws://127.0.0.1:{port}/chat", max_size=None, open_timeout=PATIENCE) as socket:
                left = chance.randrange(1, 100) if number else sys.maxsize
                while left > 0 and not stopping.wait(0.2):
                    left -= 1
                    message = LARGE[:chance.choice((10, 1000, len(LARGE)))]
                    socket.send(message)
                    expect(socket.recv(PATIENCE), message)
            # It ends well if the other side agrees.
            expect(str(socket.close_code), "1000")
            tally.well()
        except (OSError, EOFError, ValueError, WebSocketException) as error:
            tally.failed(f"{type(error).__name__}: {error}")
            stopping.wait(0.2)


def main(port, callers, talkers):
    tallies = {"rpc": Tally(), "chat": Tally()}
    threads = [threading.Thread(target=call, args=(port, tallies["rpc"], n)) for n in range(int(callers))]
    threads += [threading.Thread(target=talk, args=(port, tallies["chat"], n)) for n in range(int(talkers))]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopping.set()
    for thread in threads:
        thread.join()
    print(json.dumps({name: {"requests": tally.requests, "failures": tally.failures}
                      for name, tally in tallies.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
