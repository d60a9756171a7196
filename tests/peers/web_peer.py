"""A web server by Hypercorn, over HTTP/1.1 or HTTP/2 without TLS as the proxy likes. It sends back what is
sent to /echo, and its page opens a WebSocket to where it came from and reports what came of it.

server: prints its port, then each report, and serves until its standard input ends.
"""

import asyncio
import socket
import sys
import threading

from hypercorn.asyncio import serve
from hypercorn.config import Config

PAGE = b"""<!doctype html><title>WebSocket</title><script>
const report = text => fetch("/report", {method: "POST", body: text});
const page = performance.getEntriesByType("navigation")[0].nextHopProtocol;
const socket = new WebSocket(location.href.replace(/^http/, "ws") + "chat", ["chat.v1"]);
const large = "\\u00e4".repeat(300000);
const messages = ["text", "", large, new Uint8Array([0, 255, 7]).buffer];
let got = 0;
socket.binaryType = "arraybuffer";
socket.onopen = () => messages.forEach(message => socket.send(message));
socket.onmessage = ({data}) => {
  const show = message => typeof message === "string" ? message : String(new Uint8Array(message));
  if (show(data) !== show(messages[got])) report("message " + got + " did not come back as it was");
  if (++got === messages.length) socket.close(1000, "done");
};
socket.onclose = ({code, reason, wasClean}) =>
  report([got, socket.protocol, code, reason, wasClean, page].join(" "));
</script>"""


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await chat(scope, receive, send)
    elif scope["type"] == "http":
        await page(scope, receive, send)


async def chat(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})


async def page(scope, receive, send):
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    if scope["path"] == "/report":
        print(body.decode(), flush=True)
    answers = {"/": PAGE, "/report": b"", "/echo": body}
    status = 200 if scope["path"] in answers else 404
    headers = [(b"content-type", b"text/html; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answers.get(scope["path"], b"")})


async def server():
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = None
    config.websocket_max_message_size = 1 << 24
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True
    ).start()
    print(listener.getsockname()[1], flush=True)
    await serve(app, config, shutdown_trigger=ended.wait)


if __name__ == "__main__":
    asyncio.run({"server": server}[sys.argv[1]]())
