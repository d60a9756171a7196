"""The load generators, wrk and h2load, and what their output says."""

import re
import subprocess
from dataclasses import dataclass

from processes import Failure, pinned

UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


@dataclass(frozen=True)
class Load:
    """What one measurement asked for and got. Latencies in microseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    errors: int

    @property
    def rate(self):
        return self.requests / self.seconds


@dataclass(frozen=True)
class Mode:
    """One row's kind of traffic."""

    title: str
    path: str
    connections: int
    close: bool = False
    streams: int = 0


MODES = {
    "h1": Mode("HTTP/1.1 keep-alive, 64 connections, 1 KiB", "/1k", 64),
    "close": Mode("a connection per request, 64 connections, 1 KiB", "/1k", 64, close=True),
    "h2c": Mode("h2c prior knowledge, 16 connections x 8 streams, 1 KiB", "/1k", 16, streams=8),
    "1m": Mode("HTTP/1.1 keep-alive, 16 connections, 1 MiB", "/1m", 16),
}


def apply(mode, proxy, seconds, cores, directory):
    """Put one mode's load on a running proxy."""
    if mode.streams:
        return h2load(f"http://127.0.0.1:{proxy.h2_port}{mode.path}", mode, seconds, cores, directory)
    return wrk(f"http://127.0.0.1:{proxy.port}{mode.path}", mode, seconds, cores)


def run(command, cores, seconds):
    """Run a generator, bounded in time, and return what it printed."""
    try:
        done = subprocess.run(
            pinned(command, cores),
            capture_output=True, text=True, timeout=seconds + 20, check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} did not end in time") from None
    if done.returncode != 0:
        raise Failure(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wrk(url, mode, seconds, cores, patience=2):
    """HTTP/1.1 load on one thread. A reply that takes more than `patience` seconds is an error."""
    command = ["wrk", "-t1", f"-c{mode.connections}", f"-d{seconds}s", "--latency",
               "--timeout", f"{patience}s"]
    if mode.close:
        command += ["-H", "Connection: close"]
    return parse_wrk(run([*command, url], cores, seconds))


def parse_wrk(text):
    """Read wrk's report."""
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", text)
    if total is None:
        raise Failure(f"wrk printed no total:\n{text}")
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(map(int, socket_errors.groups())) if socket_errors else 0
    errors += int(refused.group(1)) if refused else 0
    return Load(
        requests=int(total.group(1)),
        seconds=float(total.group(2)) * UNITS[total.group(3)] / 1e6,
        p50=_wrk_quantile(text, "50%"),
        p99=_wrk_quantile(text, "99%"),
        errors=errors,
    )


def _wrk_quantile(text, name):
    found = re.search(rf"^\s*{name}\s+([\d.]+)(us|ms|s|m)", text, re.MULTILINE)
    return float(found.group(1)) * UNITS[found.group(2)] if found else float("nan")


def h2load(url, mode, seconds, cores, directory):
    """h2c load on one thread. Its per-request log gives the quantiles that it does not print."""
    log = f"{directory}/h2load.log"
    open(log, "w", encoding="utf-8").close()
    command = [
        "h2load", "-t1", f"-c{mode.connections}", f"-m{mode.streams}", f"-D{seconds}",
        f"--log-file={log}", url,
    ]
    text = run(command, cores, seconds)
    with open(log, encoding="utf-8") as file:
        return parse_h2load(text, file, seconds)


def parse_h2load(text, log, seconds):
    """Read h2load's report and its log of (start, status, microseconds) per request."""
    rows = [line.split() for line in log]
    times = sorted(int(row[2]) for row in rows if row[1] == "200")
    succeeded, failed = h2load_counts(text)
    if not times:
        raise Failure(f"h2load reported no successful request:\n{text}")
    return Load(succeeded, float(seconds), quantile(times, 0.50), quantile(times, 0.99), failed)


def h2load_counts(text):
    """Requests that succeeded and that failed, by h2load's report."""
    counts = re.search(
        r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, "
        r"(\d+) failed, (\d+) errored, (\d+) timeout", text)
    if counts is None or int(counts.group(4)) == 0:
        raise Failure(f"h2load reported no successful request:\n{text}")
    return int(counts.group(4)), int(counts.group(5))


def h2c_smoke(proxy, cores, count=64):
    """Check that h2c works at all: `count` requests, all 2xx, all of full size."""
    url = f"http://127.0.0.1:{proxy.h2_port}/1k"
    text = run(["h2load", "-t1", "-c1", "-m8", f"-n{count}", url], cores, 10)
    good = re.search(r"status codes: (\d+) 2xx", text)
    size = re.search(r"\((\d+)\) data", text)
    if good is None or int(good.group(1)) != count:
        raise Failure(f"{proxy.name}: h2c does not work:\n{text}")
    if size is None or int(size.group(1)) != count * 1024:
        raise Failure(f"{proxy.name}: h2c bodies have the wrong size:\n{text}")


def quantile(ordered, fraction):
    """The value below which `fraction` of an ordered list lies."""
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * fraction))])
