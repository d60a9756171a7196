"""What the soak test runs: endpoints that can be killed and revived, and the proxy in front of them.

The proxy's configuration changes all the time. It is mounted as Kubernetes mounts a ConfigMap: a link that
leads to a folder with the file, and is renamed over to change it.
"""

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import processes
import proxies
from processes import Failure, free_ports, wait_until

PEERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "peers")
BACKENDS = ("v1", "v2")
# Services whose endpoints die, and how these are written in the configuration.
MORTAL = {"web": "http", "rpc": "h2c", "chat": "http"}
# Records of the access log have milliseconds.
CLOCK_SLACK = 0.002


class Endpoint:
    """A server that can be killed, and started again on its port."""

    def __init__(self, name, port, command, ready, cores, directory):
        self.name = name
        self.port = port
        self._command = command
        self._ready = ready
        self._cores = cores
        self._directory = directory
        self._running = ExitStack()
        self._process = None
        # From the moment before it was killed to the one after it answered again.
        self._dead = []

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        command = self._command(self)
        log = f"{self._directory}/{self.name}.log"
        # The peers in Python end with their standard input, which ends with us.
        self._process = self._running.enter_context(processes.running(
            self.name, command, self._cores, self._directory, stdin=subprocess.PIPE))
        wait_until(lambda: self._ready(self), self._process, self.name, log)
        if self._dead:
            self._dead[-1] = (self._dead[-1][0], time.time())

    def revive(self):
        """Start it if it is dead."""
        if self._dead and self._dead[-1][1] == float("inf"):
            self.start()

    def kill(self):
        self._dead.append((time.time(), float("inf")))
        processes.kill_group(self._process)
        self.close()

    def close(self):
        """End it for good."""
        if self._process is not None:
            self._process.stdin.close()
        self._running.close()

    def deaths(self, begin, end):
        """The numbers of those deaths that an exchange of this time can have suffered from."""
        return [number for number, (killed, revived) in enumerate(self._dead)
                if begin <= revived + CLOCK_SLACK and end >= killed - CLOCK_SLACK]


@dataclass(frozen=True)
class Shape:
    """What changes in the configuration."""

    guest: bool = False
    extra: bool = False
    third: bool = False
    retry: bool = False
    idle: str = "75s"
    tls_version: str = "1.2"
    broken: bool = False


class Site:
    """The endpoints, the proxy, and its configuration."""

    def __init__(self, binary, python, directory, cores):
        self.binary = binary
        self.directory = directory
        self.cores = cores
        # All at once, because none is taken yet.
        self._ports = free_ports(32)
        self.plain, self.tls, self.admin, self.guest = (self._ports.pop() for _ in range(4))
        self.shape = Shape()
        self._folder = None
        self._stack = ExitStack()
        self._versions = 0
        self._make_files()
        self.endpoints = {}
        for backend in BACKENDS:
            self._add("steady", backend, "a", self._nginx, well("/1k"))
            for copy in "ab":
                self._add("web", backend, copy, self._nginx, well("/1k"))
                self._add("rpc", backend, copy, peer(python, "grpc_peer.py"), takes_connections)
                self._add("chat", backend, copy, peer(python, "websocket_peer.py"), well("/healthz"))

    def _add(self, service, backend, copy, command, ready):
        endpoint = Endpoint(f"{service}-{backend}-{copy}", self._ports.pop(), command, ready,
                            self.cores, self.directory)
        self.endpoints[service, backend, copy] = endpoint

    def mortal(self):
        """The endpoints that are killed, by what they are, and never two of a backend in succession."""
        return {key: self.endpoints[key] for key in sorted(self.endpoints, key=lambda key: (key[2], key[1]))
                if key[0] in MORTAL}

    def _make_files(self):
        # nginx's workers are not root.
        os.chmod(self.directory, 0o755)
        os.makedirs(f"{self.directory}/www")
        self.document = random.Random(1).randbytes(proxies.SIZES["/1m"])
        with open(f"{self.directory}/www/1m", "wb") as file:
            file.write(self.document)
        self.certificate, self._key, _ = proxies.make_certificate(self.directory)

    def _nginx(self, endpoint):
        binary = proxies.find("nginx", None)
        if binary is None:
            raise Failure("nginx is needed for the backends: not found")
        # One that was killed leaves it behind, and then there is no place for the next.
        with suppress(FileNotFoundError):
            os.remove(f"{self.directory}/{endpoint.name}.sock")
        config = f"{self.directory}/{endpoint.name}.conf"
        proxies.render("nginx-backend.conf", config, {
            "NAME": endpoint.name, "PORT": endpoint.port, "DIR": self.directory,
            "BODY_1K": proxies.BODY_1K})
        return [binary, "-e", f"{self.directory}/{endpoint.name}.log", "-c", config]

    def start(self):
        """Start everything; it ends with `close`."""
        for endpoint in self.endpoints.values():
            self._stack.callback(endpoint.close)
            endpoint.start()
        self.write(Shape())
        command = [self.binary, "run", "--config", f"{self.directory}/config/tidegate.toml"]
        self.process = self._stack.enter_context(
            processes.running("tidegate", command, self.cores, self.directory))
        wait_until(lambda: proxies.answers(self.admin, "/readyz"), self.process, "tidegate", self.log)
        self.proxy = proxies.Proxy("tidegate", self.process, self.plain, self.plain, self.tls, self.admin)

    def close(self):
        self._stack.close()

    @property
    def log(self):
        return f"{self.directory}/tidegate.log"

    def write(self, shape):
        """Have the configuration say something else."""
        self.shape = shape
        self._versions += 1
        folder = f"{self.directory}/config-{self._versions}"
        os.makedirs(folder)
        proxies.render("soak.toml", f"{folder}/tidegate.toml", self._values(shape))
        link = f"{self.directory}/config"
        os.symlink(folder, f"{link}.new")
        os.rename(f"{link}.new", link)
        if self._folder is not None:
            shutil.rmtree(self._folder)
        self._folder = folder

    def change(self, **changes):
        self.write(replace(self.shape, **changes))

    def _values(self, shape):
        def urls(service, backend):
            scheme = MORTAL.get(service, "http")
            mine = [self.endpoints[key] for key in self.endpoints if key[:2] == (service, backend)]
            if shape.third and (service, backend) == ("web", "v1"):
                mine.append(self.endpoints["steady", "v1", "a"])
            return ", ".join(f'"{scheme}://{endpoint.address}"' for endpoint in mine)

        guest = f'\n[[listeners]]\naddress = "127.0.0.1:{self.guest}"\n'
        extra = ('\n[[routes]]\npath = "/extra"\nservice = "extra"\n'
                 'url_rewrite = { replace_full_path = "/1k" }\n'
                 '\n[services.extra]\nstable = "v1"\n'
                 f'\n[services.extra.backends.v1]\nendpoints = [{urls("steady", "v1")}]\n')
        endpoints = {f"{service}_{backend}".upper(): urls(service, backend)
                     for service in ("steady", *MORTAL) for backend in BACKENDS}
        return {
            "DIR": self.directory, "CERTIFICATE": self.certificate, "KEY": self._key,
            "PLAIN": self.plain, "TLS": self.tls, "ADMIN": self.admin,
            "IDLE": shape.idle, "TLS_VERSION": "9" if shape.broken else shape.tls_version,
            "RETRY": "\n[services.web.retry]\n" if shape.retry else "",
            "GUEST": guest if shape.guest else "", "EXTRA": extra if shape.extra else "", **endpoints,
        }

    def api(self, method, path, body=None):
        """One request to the admin API: the status and what it says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=30)
        try:
            connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body),
                               {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def metrics(self):
        """All series of a scrape, by name and labels as they are written."""
        status, _, text = proxies.get(self.admin, "/metrics", timeout=30)
        if status != 200:
            raise Failure(f"/metrics answered {status}")
        lines = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in lines}

    def total(self, name):
        """The sum of a metric's series."""
        return sum(value for series, value in self.metrics().items()
                   if re.match(name + r"(\{|$)", series))

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)


def peer(python, script):
    """How one of the peers in Python is started."""
    return lambda endpoint: [python, os.path.join(PEERS, script), "server", str(endpoint.port)]


def well(path):
    """Ready when it answers a request."""
    return lambda endpoint: proxies.answers(endpoint.port, path)


def takes_connections(endpoint):
    """Ready when it takes a connection."""
    try:
        socket.create_connection(("127.0.0.1", endpoint.port), 1).close()
    except OSError:
        return False
    return True
