"""Starting, measuring and ending the processes under test.

Every process started here is led by a process group of its own and is ended by
its id when the `with` block around it is left, whatever the reason. Figures
come from /proc, so this runs on Linux only.
"""

import os
import random
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Below Linux's ephemeral range (32768 and up), so that the thousands of client
# connections of a run cannot take a port between its choice and its use.
PORT_RANGE = (20000, 32000)


class Failure(Exception):
    """Something did not go as it must; the message is for the person running us."""


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of a process and its children, all threads."""

    user: float
    system: float

    def since(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.user - earlier.user, self.system - earlier.system)


@dataclass(frozen=True)
class Memory:
    """Resident memory in MiB, summed over a process and its children."""

    peak: float
    now: float


def free_ports(count):
    """Return `count` different ports that nothing listens on."""
    ports = set()
    for candidate in random.sample(range(*PORT_RANGE), 2000):
        if len(ports) == count:
            break
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            ports.add(candidate)
    if len(ports) < count:
        raise Failure(f"no {count} free ports between {PORT_RANGE[0]} and {PORT_RANGE[1]}")
    return list(ports)


def pinned(command, cores):
    """The command line that runs `command` on `cores`, written as taskset takes them."""
    return ["taskset", "-c", str(cores), *command]


@contextmanager
def running(name, command, cores, directory, stdin=subprocess.DEVNULL):
    """Run a server on `cores` for the length of a `with` block; its log is kept in `directory`."""
    with open(f"{directory}/{name}.log", "ab") as log:
        process = subprocess.Popen(
            pinned(command, cores),
            stdin=stdin,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process, seconds=5):
    """End a process: politely first, then with every child it may have left."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
    kill_group(process)
    process.wait()


def kill_group(process):
    """Kill the process group that `running` made, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def wait_until(ready, process, what, log, seconds=15):
    """Wait until `ready()` is true; fail with the log's end if the process ends or time runs out."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise Failure(f"{what} ended with code {process.returncode} instead of starting:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise Failure(f"{what} was not ready after {seconds} s:\n{tail(log)}")
        time.sleep(0.05)


def tail(log, lines=10):
    """The last lines of a log."""
    with open(log, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-lines:])


def _stat_fields(pid):
    """Fields of /proc/PID/stat from the third (state) on; the name before may hold spaces."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def tree(root):
    """The ids of a process and all its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(_stat_fields(entry)[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def cpu(root):
    """CPU time used so far by the process tree.

    The kernel scales utime and stime so that their sum is the exact run time,
    cut to a tick: at 5 s windows the total is good to half a percent. Only the
    split between user and system is sampled.
    """
    user = system = 0
    for pid in tree(root):
        fields = _stat_fields(pid)
        user += int(fields[11])
        system += int(fields[12])
    return Cpu(user / TICKS_PER_SECOND, system / TICKS_PER_SECOND)


def core_busy(core):
    """Seconds that one core has worked so far, for anyone, time stolen by a hypervisor included."""
    with open("/proc/stat", encoding="utf-8") as file:
        for line in file:
            name, *fields = line.split()
            if name == f"cpu{core}":
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND
    raise Failure(f"there is no core {core}")


def descriptors(pid):
    """How many descriptors a process has, pipes apart from others."""
    kinds = {"pipe": 0, "other": 0}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue
        kinds["pipe" if target.startswith("pipe:") else "other"] += 1
    return kinds


def huge_pages(pid):
    """MiB of a process's memory that the kernel has put into huge pages."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:")) / 1024


def memory(root):
    """Resident memory of the process tree. Pages shared between processes count in each."""
    peak = now = 0
    for pid in tree(root):
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    peak += int(line.split()[1])
                elif line.startswith("VmRSS:"):
                    now += int(line.split()[1])
    return Memory(peak / 1024, now / 1024)
