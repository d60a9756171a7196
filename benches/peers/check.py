#!/usr/bin/env python3
"""Check what Tidegate promises under load; exits 1 if a promise is broken.

split    200,000 requests at 10 %: the canary's share is within 0.5 points
weights  1,000 weight changes under load: no request fails
drain    a graceful stop under load: no request fails, the exit code is 0
kill     a backend dies: only its share fails, the other's latency stays
workers  CPU per request with two workers against one (a figure, no bound)
"""

import argparse
import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import load
import processes
import proxies
from client import Crowd
from generators import quantile
from processes import Failure

# The usual load: HTTP/1.1 keep-alive.
LOAD = load.modes()["h1"].generator

SPLIT_REQUESTS = 200_000
SPLIT_PERCENT = 10.0
# Seven standard deviations of a random split at this many requests.
SPLIT_TOLERANCE = 0.5

WEIGHT_CHANGES = 1_000
WEIGHT_SECONDS = 10

DRAIN_SECONDS = 60

KILL_SECONDS = 4
# Of the share that may fail, in points: five standard deviations at the
# 6,000 requests of one phase.
KILL_TOLERANCE = 2.0
# How much a quantile may grow, and what is too little to tell on a loopback.
LATENCY_FACTOR = 1.5
LATENCY_SLACK_MS = 1.0


@dataclass(frozen=True)
class Subject:
    """The proxy to check and where it runs."""

    name: str
    binary: str
    proxy_core: int
    load_core: int

    @contextmanager
    def started(self, workers=1, cores=None):
        """The proxy in front of two fresh backends, with the directory of its files."""
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-check-"))
            backends = {
                name: stack.enter_context(proxies.backend(name, self.load_core, directory))
                for name in proxies.BACKENDS
            }
            proxy = stack.enter_context(proxies.proxy(
                self.name, self.binary, backends,
                self.proxy_core if cores is None else cores, directory, workers))
            yield proxy, backends, directory


def require(condition, message):
    """Break the promise with a message."""
    if not condition:
        raise Failure(message)


def check_split(subject):
    """(a) The share that the backends counted themselves."""
    with subject.started() as (proxy, backends, directory):
        before = {name: backend.requests() for name, backend in backends.items()}
        errors = 0
        # wrk is bounded in time, not in number: go on until there are enough.
        for _ in range(30):
            errors += LOAD.load(proxy, 3, subject.load_core, directory).errors
            # Less the question itself.
            counts = {name: backends[name].requests() - 1 - before[name] for name in backends}
            if sum(counts.values()) >= SPLIT_REQUESTS:
                break
    total = sum(counts.values())
    share = 100 * counts["v2"] / total
    print(f"  {total} requests, {counts['v1']} to v1, {counts['v2']} to v2: "
          f"{share:.3f} % (wanted {SPLIT_PERCENT} +-{SPLIT_TOLERANCE}), {errors} failed")
    require(total >= SPLIT_REQUESTS, "too few requests in the time given")
    require(errors == 0, f"{errors} requests failed")
    require(abs(share - SPLIT_PERCENT) <= SPLIT_TOLERANCE, "the share is off")


def check_weights(subject):
    """(b) Weight changes through the admin API while wrk runs."""
    require(subject.name == "tidegate", "only Tidegate has an API for weights")
    with subject.started() as (proxy, _, directory):
        with ThreadPoolExecutor(1) as pool:
            # The load must outlast the changes.
            running = pool.submit(LOAD.load, proxy, WEIGHT_SECONDS + 3, subject.load_core,
                                  directory)
            time.sleep(1)
            slowest = change_weights(proxy)
            require(not running.done(), "the load ended before the changes did")
            result = running.result()
        for weight, expected in ((100, "v2"), (0, "v1")):
            put_weight(http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=5), weight)
            seen = {proxies.get(proxy.port, "/1k")[1]["X-Backend"] for _ in range(50)}
            require(seen == {expected}, f"at weight {weight} the answers came from {seen}")
    print(f"  {WEIGHT_CHANGES} changes, slowest {slowest * 1e3:.1f} ms; "
          f"{result.requests} requests meanwhile, {result.errors} failed, p99 {result.p99 / 1e3:.2f} ms")
    require(result.errors == 0, f"{result.errors} requests failed")


def change_weights(proxy):
    """Change the weight at an even pace; returns the longest time one change took."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=5)
    begun = time.monotonic()
    slowest = 0.0
    for number in range(WEIGHT_CHANGES):
        time.sleep(max(0.0, begun + number * WEIGHT_SECONDS / WEIGHT_CHANGES - time.monotonic()))
        asked = time.monotonic()
        put_weight(connection, number * 7 % 101)
        slowest = max(slowest, time.monotonic() - asked)
    connection.close()
    return slowest


def put_weight(connection, percent):
    """One weight change."""
    connection.request("PUT", "/api/v1/services/web/weight", json.dumps({"canary": percent}),
                       {"Content-Type": "application/json"})
    reply = connection.getresponse()
    body = reply.read()
    require(200 <= reply.status < 300, f"PUT weight {percent}: {reply.status} {body[:200]!r}")


def check_drain(subject):
    """(c) A graceful stop under load."""
    with subject.started() as (proxy, _, _):
        # Most ask for small documents; some are in the middle of a large one.
        crowd = Crowd(proxy.port, ["/1k"] * 56 + ["/1m"] * 8, pause=0.005)
        took, code = asyncio.run(drain(crowd, proxy))
    tally = crowd.tally
    closes = sum(reply.closes for reply in tally.replies)
    bad = [f"status {reply.status}" for reply in tally.replies if reply.status != 200]
    failures = tally.failures + bad
    print(f"  {len(tally.replies)} requests, {len(failures)} failed, {closes} answered with "
          f"Connection: close; ended {took:.2f} s after the signal with code {code}")
    require(not failures, summary(failures))
    require(code == 0, f"the exit code was {code}")


async def drain(crowd, proxy):
    """Load, signal, and wait for every connection to be refused and the process to end."""
    visiting = asyncio.ensure_future(crowd.run())
    await asyncio.sleep(2)
    crowd.draining = True
    signalled = time.monotonic()
    proxy.process.send_signal(proxies.KINDS[proxy.name].drain)
    try:
        await asyncio.wait_for(asyncio.shield(visiting), DRAIN_SECONDS)
    except asyncio.TimeoutError:
        crowd.stop = True
        await visiting
        raise Failure(f"still accepting {DRAIN_SECONDS} s after the signal") from None
    left = DRAIN_SECONDS - (time.monotonic() - signalled)
    try:
        code = await asyncio.to_thread(proxy.process.wait, max(1.0, left))
    except subprocess.TimeoutExpired:
        raise Failure(f"still running {DRAIN_SECONDS} s after the signal") from None
    return time.monotonic() - signalled, code


def check_kill(subject):
    """(d) The canary's process is killed under load."""
    with subject.started() as (proxy, backends, _):
        crowd = Crowd(proxy.port, ["/1k"] * 32, pause=0.02)
        killed = asyncio.run(kill_midway(crowd, backends["v2"]))
    before = [reply for reply in crowd.tally.replies if reply.at < killed]
    after = [reply for reply in crowd.tally.replies if reply.at >= killed]
    require(before and after, "no answers: " + summary(crowd.tally.failures))
    failed = [reply.status for reply in after if reply.status != 200]
    share = 100 * len(failed) / len(after)
    print(f"  before: {len(before)} requests; after: {len(after)} requests, "
          f"{len(failed)} failed ({share:.1f} %): {sorted(set(failed))}")
    slower = [shift(before, after, fraction) for fraction in (0.50, 0.99)]
    require(not crowd.tally.failures, summary(crowd.tally.failures))
    require(all(reply.status == 200 for reply in before), "requests failed before the kill")
    strange = set(failed) - proxies.KINDS[subject.name].unreachable
    require(not strange, f"unexpected statuses {sorted(strange)}")
    require(share <= SPLIT_PERCENT + KILL_TOLERANCE, "more failed than the canary's share")
    require(not any(slower), "the other backend's latency moved")


async def kill_midway(crowd, backend):
    """Load, kill, load; returns the moment of the kill."""
    visiting = asyncio.ensure_future(crowd.run())
    await asyncio.sleep(KILL_SECONDS)
    killed = time.monotonic()
    processes.kill_group(backend.process)
    await asyncio.sleep(KILL_SECONDS)
    crowd.stop = True
    await visiting
    return killed


def shift(before, after, fraction):
    """Print one quantile of v1's latency, before and after; true if it moved."""
    old, new = (
        quantile(sorted(reply.seconds for reply in part if reply.backend == "v1"), fraction) * 1e3
        for part in (before, after)
    )
    print(f"  v1 p{fraction * 100:.0f}: {old:.2f} ms before, {new:.2f} ms after")
    return new > max(old * LATENCY_FACTOR, old + LATENCY_SLACK_MS)


def check_workers(subject):
    """(e) What a second worker costs per request."""
    both = f"{subject.proxy_core},{subject.load_core}"
    figures = [cpu_per_request(subject, 1, None), cpu_per_request(subject, 2, both)]
    print(f"  1 worker {figures[0]:.1f} us/request, 2 workers {figures[1]:.1f} us/request: "
          f"ratio {figures[1] / figures[0]:.2f}")


def cpu_per_request(subject, workers, cores):
    """Microseconds of CPU per request in mode h1."""
    with subject.started(workers, cores) as (proxy, _, directory):
        LOAD.load(proxy, 1, subject.load_core, directory)
        before = processes.cpu(proxy.pid)
        result = LOAD.load(proxy, 5, subject.load_core, directory)
        used = processes.cpu(proxy.pid).since(before)
    require(result.errors == 0, f"{result.errors} requests failed with {workers} workers")
    return (used.user + used.system) / result.requests * 1e6


def summary(failures):
    """The number of failures and the first few."""
    return f"{len(failures)} failed: " + "; ".join(failures[:5])


CHECKS = {
    "split": check_split,
    "weights": check_weights,
    "drain": check_drain,
    "kill": check_kill,
    "workers": check_workers,
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="default: all")
    parser.add_argument("--tidegate", metavar="PATH", default="target/release/tidegate",
                        help="default: %(default)s")
    parser.add_argument("--proxy", choices=proxies.KINDS, default="tidegate",
                        help="check a peer instead, to see how it fares (all but weights)")
    parser.add_argument("--binary", metavar="PATH", help="the peer's binary, if not on PATH")
    parser.add_argument("--proxy-core", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--load-core", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    for name in arguments.checks:
        if name not in CHECKS:
            parser.error(f"{name!r} is none of {', '.join(CHECKS)}")
    return arguments


def main():
    # A plain kill must run the clean-up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    given = arguments.tidegate if arguments.proxy == "tidegate" else arguments.binary
    binary = proxies.find(arguments.proxy, given)
    if binary is None:
        sys.exit(f"error: {given or arguments.proxy} not found")
    # This process is a load generator too.
    os.sched_setaffinity(0, {arguments.load_core})
    subject = Subject(arguments.proxy, binary, arguments.proxy_core, arguments.load_core)
    broken = []
    for name in arguments.checks or CHECKS:
        print(f"{name}:", flush=True)
        try:
            CHECKS[name](subject)
            print("  ok")
        except Failure as failure:
            print(f"  FAILED: {failure}")
            broken.append(name)
    if broken:
        sys.exit(f"error: broken under load: {', '.join(broken)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
