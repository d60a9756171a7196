#!/usr/bin/env python3
"""Run Tidegate under mixed load for long; exits 1 if something goes wrong that must not.

HTTP/1.1, HTTP/2, TLS, gRPC and WebSockets, small, large and slow. Meanwhile weights change each second, the
configuration is read anew every 10 s, and endpoints are killed and started again, one at a time. README.md
beside this file says what must hold.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median

import processes
import proxies
from client import Crowd
from processes import Failure
from soak_clients import GENERATORS, Tally, Visitors
from soak_log import Judge
from soak_site import MORTAL, Shape, Site

RELOAD_SECONDS = 10
SAMPLE_SECONDS = 2
REPORT_SECONDS = 30
ROTATE_SECONDS = 30
# How long something may take that takes a moment, on a machine that is not quiet.
PATIENCE = 30

# Clients of the peers in Python.
CALLERS = 6
TALKERS = 4

# Memory is looked at after a time in which buffers, pools and the allocator find their size. What it was in
# the first quarter of the rest and in the last one may differ by the larger of these.
WARM_UP_SECONDS = 300
GROWTH_SHARE = 0.10
GROWTH_MIB = 8.0
# In huge pages, memory would be what the kernel makes of it. A few there may be, from before the process could say
# that it wants none.
HUGE_MIB = 8.0
# What may be left when there is nothing to do: health checks open a socket for a moment, and each of two
# workers keeps 64 pipes, of two ends each, for the next large bodies.
SPARE_DESCRIPTORS = {"pipe": 256, "other": 2}
# Idle connections to HTTP/2 backends are kept for a minute.
QUIET_SECONDS = 100
# Of one core, when there is nothing to do but health checks.
IDLE_CPU = 0.10

# A leak for each reload would hide among the rest, so there are many in the end. The first ones are for the
# allocator; what the others may add.
RELOADS_IN_A_ROW = (400, 1200)
RELOADS_GROWTH_MIB = 4.0

# What changes at each reload; after the last one it is as it was at first.
RELOADS = (
    {"guest": True},
    {"extra": True},
    {"broken": True},
    {"broken": False, "idle": "60s", "retry": True},
    {"third": True, "tls_version": "1.3"},
    {"guest": False},
    {"extra": False},
    {"third": False, "idle": "75s", "retry": False, "tls_version": "1.2"},
)
# How the proxy learns of it. There are as many as have no common factor with the above.
WAYS = ("api", "signal", "file")


@dataclass(frozen=True)
class Sample:
    """The proxy's resources at one moment: seconds since the start, MiB, descriptors by kind."""

    at: float
    rss: float
    # Of these, MiB in huge pages.
    huge: float
    descriptors: dict


def require(condition, message):
    """Break the promise with a message."""
    if not condition:
        raise Failure(message)


class Soak:
    """One run, and what has been seen of it."""

    def __init__(self, site, python, seconds):
        self.site = site
        self.python = python
        self.seconds = seconds
        self.tally = Tally()
        self.judge = Judge(site)
        self.visitors = Visitors(site, self.tally)
        self.clients = {"web": self.visitors.count, "rpc": CALLERS, "chat": TALKERS}
        self.stopping = asyncio.Event()
        self.begun = time.monotonic()
        self.samples = []
        self.weights = {}
        self.weights_lock = asyncio.Lock()
        self.changes = self.reloads = self.kills = 0
        self.slowest_notice = 0.0
        self.broken = []

    async def pause(self, seconds):
        """Wait, but not beyond the end; whether it goes on."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            return True
        return False

    async def until(self, what, condition):
        """Wait for something that takes a moment; how long it took."""
        begun = time.monotonic()
        while not await asyncio.to_thread(condition):
            require(time.monotonic() < begun + PATIENCE, f"not within {PATIENCE} s: {what}")
            await asyncio.sleep(0.05)
        return time.monotonic() - begun

    async def run(self):
        """All of it at once, until the time is over or something does not go on."""
        parts = (self.generate(), self.visitors.run(), self.talk(), self.move_weights(), self.reload(),
                 self.kill(), self.watch())
        tasks = [asyncio.ensure_future(part) for part in parts]
        await asyncio.wait(tasks, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
        self.visitors.stop = True
        self.stopping.set()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, (Failure, OSError)):
                self.broken.append(str(result))
            elif result is not None:
                raise result

    async def generate(self):
        """One generator after the other, on endpoints that live."""
        for generator, seconds in itertools.cycle(GENERATORS):
            result = await asyncio.to_thread(
                generator.load, self.site.proxy, seconds, self.site.cores, self.site.directory)
            self.tally.requests["steady"] += result.requests
            for _ in range(result.errors):
                self.tally.failed("steady", f"one of {generator}")
            if not await self.pause(1):
                return

    async def talk(self):
        """The gRPC and WebSocket clients."""
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "soak_peers.py")
        peers = await asyncio.create_subprocess_exec(
            self.python, script, str(self.site.plain), str(CALLERS), str(TALKERS),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            stopped = asyncio.ensure_future(self.stopping.wait())
            ended = asyncio.ensure_future(peers.wait())
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            require(not ended.done(), "the gRPC and WebSocket clients ended by themselves")
            told, _ = await asyncio.wait_for(peers.communicate(b""), 3 * PATIENCE)
        finally:
            if peers.returncode is None:
                peers.kill()
        for service, seen in json.loads(told).items():
            self.tally.requests[service] += seen["requests"]
            self.tally.failures[service] += seen["failures"]

    async def move_weights(self):
        """A change for each service each second."""
        chance = random.Random(2)
        while await self.pause(1):
            for service in ("steady", *MORTAL):
                weight = chance.choice((0.0, 100.0, round(chance.uniform(0, 100), 2)))
                async with self.weights_lock:
                    status, answer = await asyncio.to_thread(
                        self.site.api, "PUT", f"/services/{service}/weight", {"canary": weight})
                    require(status == 200, f"weight {weight} of {service}: {status} {answer}")
                    self.weights[service] = weight
                self.changes += 1

    async def reload(self):
        """A changed configuration, in turn, learnt of in each way."""
        guests = None
        for number in itertools.count():
            if not await self.pause(RELOAD_SECONDS):
                break
            changes = RELOADS[number % len(RELOADS)]
            if guests and changes.get("guest") is False:
                guests[0].draining = True
            await self.take_up(changes, WAYS[number % len(WAYS)])
            if changes.get("guest"):
                crowd = Crowd(self.site.guest, ["/steady/1k"] * 8 + ["/steady/1m"] * 2, pause=0.02)
                guests = crowd, asyncio.ensure_future(crowd.run())
            elif guests and not self.site.shape.guest:
                await self.see_off(*guests)
                guests = None
            if "extra" in changes:
                expected = 200 if changes["extra"] else 404
                status, _, _ = await asyncio.to_thread(proxies.get, self.site.plain, "/extra", PATIENCE)
                require(status == expected, f"/extra answers {status} after {changes}")
        if guests:
            guests[0].stop = True
            await self.see_off(*guests)

    async def take_up(self, changes, way):
        """Change the configuration and see that it is taken up, or refused if it is wrong."""
        def counts():
            seen = self.site.metrics()
            return [seen[f'tidegate_config_reloads_total{{result="{result}"}}']
                    for result in ("success", "failure")]

        wanted = await asyncio.to_thread(counts)
        wanted[bool(changes.get("broken"))] += 1
        self.site.change(**changes)
        if way == "api":
            status, answer = await asyncio.to_thread(self.site.api, "POST", "/reload")
            expected = 422 if changes.get("broken") else 200
            require(status == expected, f"reload with {changes}: {status} {answer}")
        elif way == "signal":
            self.site.hang_up()
        await self.until(f"{changes} taken up by {way}", lambda: sum(counts()) >= sum(wanted))
        require(await asyncio.to_thread(counts) == wanted, f"{changes} by {way}: the wrong result")
        async with self.weights_lock:
            _, told = await asyncio.to_thread(self.site.api, "GET", "/services")
        for service in told["services"]:
            expected = self.weights.get(service["name"], service["weight"])
            require(service["weight"] == expected,
                    f"the weight of {service['name']} is {service['weight']} after a reload, not {expected}")
        self.reloads += 1

    async def see_off(self, crowd, visiting):
        """The clients of a listener that has gone: served to the end, then refused."""
        try:
            await asyncio.wait_for(visiting, PATIENCE)
        except asyncio.TimeoutError:
            raise Failure(f"a listener still accepts {PATIENCE} s after it has gone") from None
        bad = [reply for reply in crowd.tally.replies if reply.status != 200]
        self.tally.requests["steady"] += len(crowd.tally.replies) - len(bad)
        for what in crowd.tally.failures + [f"status {reply.status}" for reply in bad]:
            self.tally.failed("steady", f"through a listener that went: {what}")

    async def kill(self):
        """One endpoint after the other, once the one before is well again."""
        for (service, backend, _), endpoint in itertools.cycle(self.site.mortal().items()):
            series = ('tidegate_endpoint_healthy{backend="%s",endpoint="%s",service="%s"}'
                      % (backend, endpoint.address, service))
            if not await self.pause(2):
                return
            await asyncio.to_thread(endpoint.kill)
            self.kills += 1
            took = await self.until(f"{endpoint.name} is seen to be dead",
                                    lambda: self.site.metrics()[series] == 0)
            self.slowest_notice = max(self.slowest_notice, took)
            await self.pause(1)
            await asyncio.to_thread(endpoint.start)
            await self.until(f"{endpoint.name} is seen to be well again",
                             lambda: self.site.metrics()[series] == 1)

    async def watch(self):
        """Sample, read the access log, and say how it goes."""
        reported = rotated = self.begun
        while await self.pause(SAMPLE_SECONDS):
            require(self.site.process.poll() is None,
                    f"the proxy ended:\n{processes.tail(self.site.log)}")
            self.samples.append(self.sample())
            self.judge.read()
            now = time.monotonic()
            if now - rotated > ROTATE_SECONDS:
                rotated = now
                self.judge.rotate()
            if now - reported > REPORT_SECONDS:
                reported = now
                self.report()

    def sample(self):
        pid = self.site.process.pid
        return Sample(
            time.monotonic() - self.begun, processes.memory(pid).now, processes.huge_pages(pid),
            processes.descriptors(pid))

    def report(self):
        last = self.samples[-1]
        print(f"  {last.at / 60:5.1f} min  {self.judge.exchanges} exchanges, "
              f"{sum(self.judge.excused.values())} excused, {len(self.judge.inexcusable)} inexcusable; "
              f"{self.changes} weights, {self.reloads} reloads, {self.kills} kills; "
              f"{last.rss:.1f} MiB, {sum(last.descriptors.values())} descriptors", flush=True)


def check_failures(soak):
    """No request failed but those that a dead endpoint had, and of these not too many."""
    judge, tally = soak.judge, soak.tally
    failed = {service: len(failures) for service, failures in tally.failures.items()}
    print(f"  {judge.exchanges} exchanges; seen by clients to fail: {failed}; "
          f"had by an endpoint as it died: {dict(judge.excused)}, at most "
          f"{max(judge.by_death.values(), default=0)} at once; a death was noticed within "
          f"{soak.slowest_notice:.1f} s")
    if judge.inexcusable:
        yield (f"{len(judge.inexcusable)} exchanges failed, by the access log: "
               + "; ".join(judge.inexcusable[:5]))
    for service, failures in tally.failures.items():
        if len(failures) > judge.excused[service]:
            last = "; ".join(f"{what} (at {at:.3f})" for at, what in failures[-5:])
            yield (f"{len(failures)} requests to {service} failed, and only {judge.excused[service]} "
                   f"were at an endpoint that died: {last}")
    # One that each client had there, and one that found nobody there before that was known.
    for (endpoint, _), count in judge.by_death.items():
        bound = 2 * soak.clients[endpoint.partition("-")[0]]
        if count > bound:
            yield f"{count} requests failed when {endpoint} died once; {bound} would be many"
    for service in ("steady", *MORTAL):
        if tally.requests[service] == 0:
            yield f"no request to {service} went well"


def check_memory(soak):
    """Memory after the warm-up does not grow."""
    warm = min(WARM_UP_SECONDS, soak.seconds / 3)
    rest = [sample.rss for sample in soak.samples if sample.at >= warm]
    quarter = len(rest) // 4
    if quarter == 0:
        yield "the run was too short to see whether memory grows"
        return
    before, after = median(rest[:quarter]), median(rest[-quarter:])
    allowed = max(GROWTH_MIB, before * GROWTH_SHARE)
    huge = max(sample.huge for sample in soak.samples)
    print(f"  RSS: {before:.1f} MiB after {warm:.0f} s, {after:.1f} MiB in the end, "
          f"at most {max(sample.rss for sample in soak.samples):.1f}, {huge:.1f} of it in huge pages; "
          f"may grow by {allowed:.1f}")
    if huge > HUGE_MIB:
        yield f"{huge:.0f} MiB were in huge pages"
    if after - before > allowed:
        yield f"memory grew from {before:.1f} to {after:.1f} MiB"


def check_quiet(soak, at_first):
    """With nobody left, nothing is: no connection, no descriptor, no CPU, no series of what is gone."""
    site = soak.site
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        left = {name: site.total(f"tidegate_{name}")
                for name in ("requests_in_flight", "connections_open", "tunnels_open")}
        now = soak.sample().descriptors
        left |= {kind: now[kind] - count for kind, count in at_first.descriptors.items()}
        if not any(count > SPARE_DESCRIPTORS.get(name, 0) for name, count in left.items()):
            break
        if time.monotonic() > deadline:
            yield f"still there {QUIET_SECONDS} s after the load: {left}"
            break
        time.sleep(0.5)
    before, seconds = processes.cpu(site.process.pid), 5
    time.sleep(seconds)
    used = processes.cpu(site.process.pid).since(before)
    share = (used.user + used.system) / seconds
    print(f"  idle: {soak.sample().rss:.1f} MiB, {share:.1%} of a core, more than at first: {left}")
    if share > IDLE_CPU:
        yield f"it uses {share:.0%} of a core with nothing to do"
    if gone := [series for series in site.metrics() if '"extra"' in series]:
        yield f"there are series of a service that is gone: {gone[:3]}"
    if dropped := site.total("tidegate_access_log_dropped_total"):
        yield f"{dropped:.0f} lines of the access log were dropped, so not every exchange was judged"


def check_reloads(soak):
    """Reloads by the hundred leave nothing behind."""
    site = soak.site
    first, last = RELOADS_IN_A_ROW
    begun = time.monotonic()
    for number in range(last):
        if number == first:
            before = soak.sample()
        site.change(**RELOADS[number % len(RELOADS)])
        status, answer = site.api("POST", "/reload")
        if status not in (200, 422):
            yield f"reload {number} in a row: {status} {answer}"
            return
    after = soak.sample()
    print(f"  {last} reloads in {time.monotonic() - begun:.1f} s: from {before.rss:.1f} MiB after {first} "
          f"to {after.rss:.1f} MiB, {after.descriptors['other'] - before.descriptors['other']:+} descriptors")
    if after.rss - before.rss > RELOADS_GROWTH_MIB:
        yield f"{last - first} reloads took {after.rss - before.rss:.1f} MiB"
    if after.descriptors["other"] - before.descriptors["other"] > SPARE_DESCRIPTORS["other"]:
        yield f"{last - first} reloads left descriptors: {before.descriptors}, then {after.descriptors}"


def check_end(soak):
    """It ends when it is told to, and nothing has panicked."""
    process = soak.site.process
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(PATIENCE)
        if code != 0:
            yield f"the exit code was {code}"
    except subprocess.TimeoutExpired:
        yield f"still running {PATIENCE} s after SIGTERM"
    with open(soak.site.log, encoding="utf-8", errors="replace") as log:
        yield from (line.strip() for line in log if "panicked" in line)


async def run(site, python, seconds):
    """The load and the checks; what was broken."""
    soak = Soak(site, python, seconds)
    at_first = soak.sample()
    await soak.run()
    # Everything is well again, so that what is left is what leaked.
    for endpoint in site.endpoints.values():
        endpoint.revive()
    site.write(Shape())
    site.api("POST", "/reload")
    quiet = list(check_quiet(soak, at_first))
    soak.judge.read()
    soak.broken += [*check_failures(soak), *check_memory(soak), *quiet, *check_reloads(soak),
                    *check_end(soak)]
    soak.judge.close()
    return soak


def find_python(given):
    """A Python that has what the peers in tests/peers need."""
    given = given or os.environ.get("TIDEGATE_TEST_PYTHON")
    for candidate in (given, "target/python/bin/python3", sys.executable):
        if candidate and os.path.exists(candidate):
            tried = subprocess.run([candidate, "-c", "import grpc, websockets"], capture_output=True, check=False)
            if tried.returncode == 0:
                return candidate
    raise Failure("no Python with grpcio and websockets: python3 -m venv target/python && "
                  "target/python/bin/pip install grpcio websockets")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="default: %(default)s")
    parser.add_argument("--tidegate", metavar="PATH", default="target/release/tidegate",
                        help="default: %(default)s")
    parser.add_argument("--python", metavar="PATH",
                        help="one that has grpcio and websockets; default: the one that .ci/run makes")
    parser.add_argument("--json", metavar="FILE", help="write the samples here")
    return parser.parse_args()


def main():
    # A plain kill must run the clean-up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    binary = proxies.find("tidegate", arguments.tidegate)
    if binary is None:
        sys.exit(f"error: {arguments.tidegate} not found")
    directory = tempfile.mkdtemp(prefix="tidegate-soak-")
    broken = []
    try:
        broken = soak_in(directory, binary, arguments)
    except Failure as failure:
        broken = [str(failure)]
    finally:
        if not broken:
            shutil.rmtree(directory)
    for what in broken:
        print(f"  FAILED: {what}")
    if broken:
        sys.exit(f"error: broken under load; logs are in {directory}")
    print("  ok")


def soak_in(directory, binary, arguments):
    """Run with files in a directory; what was broken."""
    python = find_python(arguments.python)
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    site = Site(binary, python, directory, cores)
    try:
        site.start()
        soak = asyncio.run(run(site, python, arguments.minutes * 60))
    finally:
        site.close()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(sample) for sample in soak.samples], file)
    return soak.broken


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
