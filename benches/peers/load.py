"""The modes: which load each puts on a proxy, and what the proxy has to be set up for."""

from dataclasses import dataclass

from generators import H2load, Handshakes, Wrk
from idle import Idle
from proxies import GRPC_MESSAGE, GRPC_PATH

# Requests per second in mode `rate`: half of what the slowest of the proxies reached in mode `h1`
# where the figures in README.md come from.
DEFAULT_RATE = 10_000


@dataclass(frozen=True)
class Mode:
    """One kind of traffic."""

    title: str
    # Wrk, H2load, Handshakes or Idle.
    generator: object
    # Whether the backends speak gRPC.
    grpc: bool = False


def modes(rate=DEFAULT_RATE):
    """All modes by name."""
    return {
        "h1": Mode("HTTP/1.1 keep-alive, 64 connections, 1 KiB", Wrk("/1k", 64)),
        "close": Mode("a connection per request, 64 connections, 1 KiB", Wrk("/1k", 64, close=True)),
        "h2c": Mode("h2c prior knowledge, 16 connections x 8 streams, 1 KiB", H2load("/1k", 16, 8)),
        "1m": Mode("HTTP/1.1 keep-alive, 16 connections, 1 MiB", Wrk("/1m", 16)),
        "up": Mode("HTTP/1.1 keep-alive, 16 connections, 1 MiB to the backend", Wrk("/up", 16, body=1024 * 1024)),
        "tls": Mode("h1 over TLS", Wrk("/1k", 64, tls=True)),
        "h2tls": Mode("h2 over TLS, 16 connections x 8 streams, 1 KiB", H2load("/1k", 16, 8, tls=True)),
        "handshake": Mode("a TLS connection with a full handshake per request, 16 at a time, 1 KiB",
                          Handshakes("/1k", 16, resume=False)),
        "resumed": Mode("a TLS connection with a resumed session per request, 16 at a time, 1 KiB",
                        Handshakes("/1k", 16, resume=True)),
        "grpc": Mode("gRPC unary, h2c on both sides, 16 connections x 8 streams, 136 bytes each way",
                     H2load(GRPC_PATH, 16, 8, message=GRPC_MESSAGE), grpc=True),
        "rate": Mode(f"HTTP/1.1 keep-alive, 1 KiB, {rate} requests/s", H2load("/1k", rate=rate)),
        "idle": Mode("10,000 idle keep-alive connections", Idle("/1k", 2_000, 10_000)),
    }
