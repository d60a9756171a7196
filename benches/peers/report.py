"""Turning samples into the header, the table and the JSON file."""

import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from statistics import median

import load
import proxies

COLUMNS = (
    "mode", "proxy", "req/s", "us/req", "user", "sys", "vs haproxy", "(min-max)",
    "p50 ms", "p99 ms", "errors", "busy %", "others %", "RSS MiB", "peak",
)
LEFT_ALIGNED = 2


@dataclass(frozen=True)
class Sample:
    """One measured window. CPU in microseconds per request, latencies in microseconds."""

    round: int
    mode: str
    proxy: str
    requests: int
    rate: float
    user: float
    system: float
    p50: float
    p99: float
    errors: int
    # Shares of the proxy's core: the proxy's own, and everyone else's (noise).
    busy: float
    others: float
    rss: float
    rss_peak: float

    @property
    def cpu(self):
        return self.user + self.system


def header(binaries, settings):
    """What a reader must know to judge the figures, as a dictionary."""
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "kernel": platform.release(),
        "cpu": f"{_cpu_model()}, {os.cpu_count()} CPUs",
        # Other work on the machine makes every figure worse, and not evenly.
        "load": "1 min average before the first round: %.2f" % os.getloadavg()[0],
        **settings,
    }
    for name, binary in binaries.items():
        facts[name] = proxies.version(name, binary).replace(binary, "").strip()
    facts["wrk"] = _first_line(["wrk", "-v"])
    facts["h2load"] = _first_line(["h2load", "--version"])
    return facts


def _first_line(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout + done.stderr).splitlines()[0]


def _cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def print_header(facts):
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    print()


def print_table(samples):
    """One line per mode and proxy, medians over the rounds."""
    rows = [COLUMNS]
    for mode in load.MODES:
        names = dict.fromkeys(sample.proxy for sample in samples if sample.mode == mode)
        rows += [_row(samples, mode, name) for name in names]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    previous = COLUMNS[0]
    for row in rows:
        if row[0] != previous:
            print()
        previous = row[0]
        print("  ".join(_align(cell, widths, column) for column, cell in enumerate(row)).rstrip())
    print("\nmodes:")
    for mode in dict.fromkeys(sample.mode for sample in samples):
        print(f"  {mode:<5}  {load.MODES[mode].title}")


def _align(cell, widths, column):
    return cell.ljust(widths[column]) if column < LEFT_ALIGNED else cell.rjust(widths[column])


def _row(samples, mode, name):
    mine = [sample for sample in samples if sample.mode == mode and sample.proxy == name]

    def middle(field, scale=1.0):
        return median(getattr(sample, field) for sample in mine) * scale

    ratio, spread = _ratio(samples, mine)
    return (
        mode, name, f"{middle('rate'):.0f}",
        f"{middle('cpu'):.1f}", f"{middle('user'):.1f}", f"{middle('system'):.1f}",
        ratio, spread,
        f"{middle('p50', 1e-3):.2f}", f"{middle('p99', 1e-3):.2f}",
        str(sum(sample.errors for sample in mine)),
        f"{middle('busy', 100):.0f}", f"{middle('others', 100):.0f}",
        f"{middle('rss'):.1f}", f"{middle('rss_peak'):.1f}",
    )


def _ratio(samples, mine):
    """CPU per request against HAProxy's of the same round: median and range."""
    ratios = [
        sample.cpu / other.cpu
        for sample in mine
        for other in samples
        if (other.round, other.mode, other.proxy) == (sample.round, sample.mode, "haproxy")
    ]
    if not ratios:
        return "-", "-"
    return f"{median(ratios):.2f}", f"({min(ratios):.2f}-{max(ratios):.2f})"


def as_json(facts, samples):
    """Everything measured, for a later reader."""
    return {"header": facts, "samples": [asdict(sample) for sample in samples]}
