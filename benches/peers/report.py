"""Turning samples into the header, the table and the JSON file."""

import math
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from statistics import median

import proxies

LEFT_ALIGNED = 2
# What the ratios are to, and who is not among the peers.
REFERENCE = "haproxy"
OURS = "tidegate"


@dataclass(frozen=True)
class Sample:
    """One measured window. CPU in microseconds per request, latencies in microseconds, memory in MiB.
    What a mode does not measure is NaN."""

    round: int
    mode: str
    proxy: str
    requests: int = 0
    rate: float = math.nan
    user: float = math.nan
    system: float = math.nan
    p50: float = math.nan
    p90: float = math.nan
    p99: float = math.nan
    p999: float = math.nan
    errors: int = 0
    # Shares of the proxy's core: the proxy's own, and everyone else's (noise).
    busy: float = math.nan
    others: float = math.nan
    rss: float = math.nan
    rss_peak: float = math.nan
    # KiB for each idle connection.
    growth: float = math.nan

    @property
    def cpu(self):
        return self.user + self.system

    @property
    def cost(self):
        """What proxies are compared by."""
        return self.cpu if math.isnan(self.growth) else self.growth


@dataclass(frozen=True)
class Column:
    """A column of a table: the median of a field, in some unit."""

    title: str
    field: str
    digits: int
    scale: float = 1.0


# What stands right of the ratios, which every table has.
COST = (Column("req/s", "rate", 0), Column("us/req", "cpu", 1), Column("user", "user", 1),
        Column("sys", "system", 1))
LATENCY = (Column("p50 ms", "p50", 2, 1e-3), Column("p90", "p90", 2, 1e-3), Column("p99", "p99", 2, 1e-3),
           Column("p99.9", "p999", 2, 1e-3))
LOAD = (Column("busy %", "busy", 0, 100), Column("others %", "others", 0, 100), Column("RSS MiB", "rss", 1),
        Column("peak", "rss_peak", 1))
MEMORY = (Column("KiB/connection", "growth", 2), Column("RSS MiB", "rss", 1))


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
    facts["openssl"] = _first_line(["openssl", "version"])
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


def print_tables(modes, samples):
    """One line per mode and proxy, medians over the rounds; memory in a table of its own."""
    idle = [sample for sample in samples if not math.isnan(sample.growth)]
    busy = [sample for sample in samples if math.isnan(sample.growth)]
    if busy:
        _print_table(modes, busy, COST, (*LATENCY, *LOAD), errors=True)
    if idle:
        _print_table(modes, idle, MEMORY, (), errors=False)
    print("modes:")
    width = max(map(len, modes))
    for name, mode in modes.items():
        print(f"  {name:<{width}}  {mode.title}")


def _print_table(modes, samples, left, right, errors):
    titles = ("mode", "proxy", *(column.title for column in left), f"vs {REFERENCE}", "(min-max)", "vs best",
              *(["errors"] if errors else []), *(column.title for column in right))
    rows = [titles]
    for mode in modes:
        of_mode = [sample for sample in samples if sample.mode == mode]
        for name in dict.fromkeys(sample.proxy for sample in of_mode):
            mine = [sample for sample in of_mode if sample.proxy == name]
            rows.append((
                mode, name, *(_middle(mine, column) for column in left), *_ratios(of_mode, mine),
                *([str(sum(sample.errors for sample in mine))] if errors else []),
                *(_middle(mine, column) for column in right),
            ))
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    previous = titles[0]
    for row in rows:
        if row[0] != previous:
            print()
        previous = row[0]
        print("  ".join(_align(cell, widths, column) for column, cell in enumerate(row)).rstrip())
    print()


def _align(cell, widths, column):
    return cell.ljust(widths[column]) if column < LEFT_ALIGNED else cell.rjust(widths[column])


def _middle(samples, column):
    value = median(getattr(sample, column.field) for sample in samples) * column.scale
    return "-" if math.isnan(value) else f"{value:.{column.digits}f}"


def _ratios(of_mode, mine):
    """Costs against HAProxy's of the same rounds, median and range; and against the best peer's."""
    costs = {}
    for sample in of_mode:
        costs.setdefault(sample.proxy, []).append(sample.cost)
    peers = {name: median(values) for name, values in costs.items() if name != OURS}
    against = _ratio(of_mode, mine, REFERENCE)
    best = _ratio(of_mode, mine, min(peers, key=peers.get)) if peers else []
    return (
        f"{median(against):.2f}" if against else "-",
        f"({min(against):.2f}-{max(against):.2f})" if against else "-",
        f"{median(best):.2f}" if best else "-",
    )


def _ratio(of_mode, mine, name):
    return [
        sample.cost / other.cost
        for sample in mine
        for other in of_mode
        if (other.round, other.proxy) == (sample.round, name)
    ]


def as_json(facts, samples):
    """Everything measured, for a later reader."""
    return {"header": facts, "samples": [
        {name: value for name, value in asdict(sample).items() if value == value} for sample in samples
    ]}
