"""The load generators, wrk, h2load and openssl, and what their output says.

A generator is data: what it asks for. `load` puts that on a running proxy for some seconds.
"""

import math
import os
import re
import subprocess
import time
from dataclasses import dataclass

from processes import Failure, pinned

UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}

# h2load's pacing works in steps of 10 ms: a client that sends one request in each is even.
RATE_PER_CLIENT = 100
# Clients of a fixed rate begin a millisecond after each other, so that they do not send all at once.
CLIENT_APART_MS = 1
# Microseconds that a fixed rate is given to be reached.
SETTLED = 200_000

# What every TLS client offers: without this each proxy would choose by its own taste.
CLIENT_TLS = """openssl_conf = bench
[bench]
ssl_conf = ssl
[ssl]
system_default = tls
[tls]
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519
"""


@dataclass(frozen=True)
class Load:
    """What one measurement got. Latencies in microseconds; what a generator does not tell is NaN."""

    requests: int
    seconds: float
    errors: int
    p50: float = math.nan
    p90: float = math.nan
    p99: float = math.nan
    p999: float = math.nan

    @property
    def rate(self):
        return self.requests / self.seconds


def client_environment(directory):
    """The environment in which OpenSSL's clients offer what CLIENT_TLS says."""
    path = f"{directory}/client-openssl.cnf"
    if not os.path.exists(path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(CLIENT_TLS)
    return {**os.environ, "OPENSSL_CONF": path}


def run(command, cores, directory, seconds):
    """Run a generator, bounded in time, and return what it printed."""
    try:
        done = subprocess.run(
            pinned(command, cores), env=client_environment(directory),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + 20, check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} did not end in time") from None
    if done.returncode != 0:
        raise Failure(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@dataclass(frozen=True)
class Wrk:
    """HTTP/1.1 on one thread, as fast as answers come."""

    path: str
    connections: int
    close: bool = False
    tls: bool = False
    # Bytes to POST; none is a GET.
    body: int = 0
    # Seconds after which an answer that has not come counts as an error.
    patience: int = 2

    def load(self, proxy, seconds, cores, directory):
        command = ["wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s", "--latency",
                   f"--timeout={self.patience}s"]
        if self.close:
            command += ["-H", "Connection: close"]
        if self.body:
            script = f"{directory}/post.lua"
            with open(script, "w", encoding="utf-8") as file:
                file.write(f'wrk.method = "POST"\nwrk.body = string.rep("x", {self.body})\n')
            command += ["-s", script]
        url = proxy.url(self.path, self.tls)
        return parse_wrk(run([*command, url], cores, directory, seconds))


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
        errors=errors,
        p50=_wrk_quantile(text, "50%"),
        p90=_wrk_quantile(text, "90%"),
        p99=_wrk_quantile(text, "99%"),
    )


def _wrk_quantile(text, name):
    found = re.search(rf"^\s*{name}\s+([\d.]+)(us|ms|s|m)", text, re.MULTILINE)
    return float(found.group(1)) * UNITS[found.group(2)] if found else math.nan


@dataclass(frozen=True)
class H2load:
    """HTTP/2 on one thread, as fast as answers come; or HTTP/1.1 at a fixed rate."""

    path: str
    connections: int = 0
    streams: int = 1
    tls: bool = False
    # A gRPC message to send and to get.
    message: bytes = b""
    # Requests per second; 0 is as fast as answers come.
    rate: int = 0

    def load(self, proxy, seconds, cores, directory):
        # Its log of requests gives the quantiles that it does not print.
        log = f"{directory}/h2load.log"
        open(log, "w", encoding="utf-8").close()
        paced = self._paced(seconds) if self.rate else [
            f"-c{self.connections}", f"-m{self.streams}", f"-D{seconds}"]
        command = ["h2load", "-t1", *paced, f"--log-file={log}", *self.options(directory),
                   self.url(proxy)]
        text = run(command, cores, directory, seconds)
        with open(log, encoding="utf-8") as file:
            return parse_h2load(text, file, SETTLED if self.rate else 0)

    def _paced(self, seconds):
        clients = max(1, round(self.rate / RATE_PER_CLIENT))
        return ["--h1", f"-c{clients}", "-r1", f"--rate-period={CLIENT_APART_MS}ms",
                f"--rps={RATE_PER_CLIENT}", f"-n{clients * RATE_PER_CLIENT * seconds}"]

    def options(self, directory):
        """What makes a request what it is."""
        options = ["--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519"] if self.tls else []
        if self.message:
            body = f"{directory}/message"
            with open(body, "wb") as file:
                file.write(self.message)
            options += ["-d", body, "-H", "content-type: application/grpc", "-H", "te: trailers"]
        return options

    def url(self, proxy):
        if self.tls or self.rate:
            return proxy.url(self.path, self.tls)
        return f"http://127.0.0.1:{proxy.h2_port}{self.path}"

    def smoke(self, proxy, size, cores, directory, count=64):
        """Check that it works at all: `count` requests, all 2xx, all of full size."""
        command = ["h2load", "-t1", "-c1", "-m8", f"-n{count}", *self.options(directory), self.url(proxy)]
        text = run(command, cores, directory, 10)
        good = re.search(r"status codes: (\d+) 2xx", text)
        data = re.search(r"\((\d+)\) data", text)
        if good is None or int(good.group(1)) != count:
            raise Failure(f"{proxy.name}: HTTP/2 does not work:\n{text}")
        if data is None or int(data.group(1)) != count * size:
            raise Failure(f"{proxy.name}: bodies over HTTP/2 have the wrong size:\n{text}")


def parse_h2load(text, log, settled):
    """Read h2load's report and its log of (start, status, microseconds) per request. Latencies are
    of those that began `settled` microseconds after the first, or later."""
    rows = [(int(start), status, int(took)) for start, status, took in map(str.split, log)]
    first = min((start for start, _, _ in rows), default=0)
    times = sorted(took for start, status, took in rows if status == "200" and start >= first + settled)
    counts = re.search(
        r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, "
        r"(\d+) failed, (\d+) errored, (\d+) timeout", text)
    lasted = re.search(r"finished in ([\d.]+)(us|ms|s|m),", text)
    if counts is None or lasted is None or not times:
        raise Failure(f"h2load reported no successful request:\n{text}")
    return Load(int(counts.group(4)), float(lasted.group(1)) * UNITS[lasted.group(2)] / 1e6,
                int(counts.group(5)),
                *(quantile(times, fraction) for fraction in (0.50, 0.90, 0.99, 0.999)))


@dataclass(frozen=True)
class Handshakes:
    """A TLS connection for each request, from several `openssl s_time`, each with one at a time."""

    path: str
    processes: int
    # Whether sessions are resumed; if not, every handshake is a full one.
    resume: bool

    def load(self, proxy, seconds, cores, directory):
        # s_time writes `GET <this> HTTP/1.0` and an empty line.
        request = (f"{self.path} HTTP/1.1\r\nHost: bench.example\r\nConnection: close\r\n"
                   "X-Rest:")
        command = ["openssl", "s_time", "-connect", f"127.0.0.1:{proxy.tls_port}",
                   "-reuse" if self.resume else "-new", "-time", str(seconds), "-www", request]
        begun = time.monotonic()
        running = [
            subprocess.Popen(pinned(command, cores), env=client_environment(directory), text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for _ in range(self.processes)
        ]
        try:
            reports = [process.communicate(timeout=seconds + 20)[0] for process in running]
        except subprocess.TimeoutExpired:
            raise Failure("openssl s_time did not end in time") from None
        finally:
            for process in running:
                process.kill()
        took = time.monotonic() - begun
        return Load(sum(self.parse(report) for report in reports), took, errors=0)

    def parse(self, text):
        """How many connections there were; each printed a letter, `r` if its session was resumed."""
        letters = re.search(r"^[r*]+$", text, re.MULTILINE)
        size = re.search(r"(\d+) bytes read per connection", text)
        if letters is None or size is None or int(size.group(1)) < 1024:
            raise Failure(f"openssl s_time failed or got no document:\n{text}")
        resumed = letters.group().count("r")
        expected = len(letters.group()) if self.resume else 0
        if resumed != expected:
            raise Failure(f"{resumed} of {len(letters.group())} sessions were resumed, not {expected}")
        return len(letters.group())


def quantile(ordered, fraction):
    """The value below which `fraction` of an ordered list lies."""
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * fraction))])
