"""A WebSocket server that sends back what it gets, and a client that checks it.

server [PORT]: prints its port and serves until its standard input ends; /healthz answers 200.
client ADDRESS: says what went wrong, if anything did.
"""

import sys
import threading

from websockets.sync.client import connect
from websockets.sync.server import serve


def echo(socket):
    for message in socket:
        socket.send(message)


def health(socket, request):
    return socket.respond(200, "well\n") if request.path == "/healthz" else None


def server(port="0"):
    with serve(echo, "127.0.0.1", int(port), max_size=None, process_request=health) as running:
        print(running.socket.getsockname()[1], flush=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        sys.stdin.read()
        running.shutdown()


def client(address):
    with connect(f"ws://{address}/chat", max_size=None) as socket:
        for message in ["text", "", b"\x00\xff", "ä" * 100_000, bytes(3_000_000)]:
            socket.send(message)
            if socket.recv() != message:
                sys.exit("a message did not come back as it was")
        socket.send(["in ", "pieces"])
        if socket.recv() != "in pieces":
            sys.exit("fragments did not come back")
        if not socket.ping().wait(10):
            sys.exit("no pong")
    if socket.close_code != 1000:
        sys.exit(f"closed with {socket.close_code}")
    print("fine", flush=True)


if __name__ == "__main__":
    {"server": server, "client": client}[sys.argv[1]](*sys.argv[2:])
