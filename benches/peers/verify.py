"""Checks that a proxy does the work that it is about to be measured at."""

import http.client
import re
import ssl
import subprocess

import generators
import proxies
from processes import Failure

# Enough that a split of 90 to 10 leaves one side out, or turns round, once in 10^9 runs.
SPLIT_REQUESTS = 200
# What every TLS connection has to agree on.
AGREED = ("New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256", "Server Temp Key: X25519",
          "Peer signature type: ECDSA")
UPLOAD = 1024 * 1024


def verify(proxy, mode, load_core, directory):
    """All checks that are of interest in a mode."""
    if mode.grpc:
        return _calls(proxy, mode, load_core, directory)
    _bodies(proxy)
    _upload(proxy)
    _split(proxy)
    for smoke in (generators.H2load("/1k"), generators.H2load("/1k", tls=True)):
        smoke.smoke(proxy, proxies.SIZES["/1k"], load_core, directory)
    _tls(proxy, directory)


def _bodies(proxy):
    for path, size in proxies.SIZES.items():
        status, _, body = proxies.get(proxy.port, path)
        if (status, len(body)) != (200, size):
            raise Failure(f"{proxy.name}: GET {path} gave {status} with {len(body)} bytes")
    _forwarded(proxy, proxies.get(proxy.port, "/echo")[2], "http")


def _forwarded(proxy, echo, scheme):
    """What the backend saw of a request that came by `scheme`."""
    protocol, forwarded_for, forwarded_proto, connection = echo.decode().split("|")
    if protocol != "HTTP/1.1" or connection.lower() == "close":
        raise Failure(f"{proxy.name}: not keep-alive upstream: {protocol}, {connection!r}")
    if not forwarded_for or forwarded_proto != scheme:
        raise Failure(f"{proxy.name}: X-Forwarded-For {forwarded_for!r}, "
                      f"X-Forwarded-Proto {forwarded_proto!r}")


def _upload(proxy):
    """The backend has all of a body before it answers."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    connection.request("POST", "/up", b"x" * UPLOAD)
    reply = connection.getresponse()
    reply.read()
    received = int(reply.headers.get("X-Received", 0))
    connection.close()
    if reply.status != 200 or not UPLOAD < received < UPLOAD + 1024:
        raise Failure(f"{proxy.name}: POST /up gave {reply.status}, the backend got {received} bytes")


def _split(proxy):
    """Both backends are used, the canary less."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    canary = 0
    for _ in range(SPLIT_REQUESTS):
        connection.request("GET", "/1k")
        reply = connection.getresponse()
        reply.read()
        canary += reply.headers["X-Backend"] == "v2"
    connection.close()
    _is_split(proxy, canary)


def _is_split(proxy, canary):
    if not 0 < canary < SPLIT_REQUESTS / 2:
        raise Failure(f"{proxy.name}: {canary} of {SPLIT_REQUESTS} requests went to the canary")


def _tls(proxy, directory):
    """The certificate is ours, version, cipher and key exchange are everybody's."""
    context = ssl.create_default_context(cafile=proxies.make_certificate(directory)[0])
    context.check_hostname = False
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.tls_port, timeout=5, context=context)
    connection.request("GET", "/echo")
    _forwarded(proxy, connection.getresponse().read(), "https")
    connection.close()
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{proxy.tls_port}"]
    done = subprocess.run(command, env=generators.client_environment(directory), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=20, check=False)
    for fact in AGREED:
        if fact not in done.stdout:
            raise Failure(f"{proxy.name}: TLS is not as agreed ({fact}):\n{done.stdout}")


def _calls(proxy, mode, load_core, directory):
    """Calls come back with a message and trailers, from both backends."""
    said = proxies.calls(proxy.port, directory, SPLIT_REQUESTS)
    for field in (":status: 200", "content-type: application/grpc", "grpc-status: 0"):
        if _received(said, field) != SPLIT_REQUESTS:
            raise Failure(f"{proxy.name}: not every call was answered with {field!r}:\n{said[-2000:]}")
    _is_split(proxy, _received(said, "x-backend: v2"))
    mode.generator.smoke(proxy, len(proxies.GRPC_MESSAGE), load_core, directory)


def _received(said, field):
    """How many responses had a field."""
    return len(re.findall(rf"recv \(stream_id=\d+\) {re.escape(field)}$", said, re.MULTILINE))
