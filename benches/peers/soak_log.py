"""What the proxy's own access log says of the soak test: which exchanges failed, and whose fault it was."""

import json
import os
from collections import Counter
from datetime import datetime

# Outcomes that are no failure, as they stand in a record. Nearly all are the first, which need not be read.
SERVED = b'"outcome":"2xx"'
TUNNEL = "1xx"


class Judge:
    """Reads the access log while it is written and moved away.

    A failed exchange is excused if its endpoint was dead at some moment of it, and only then. Tunnels count
    as failed if their endpoint died.
    """

    def __init__(self, site):
        self._path = f"{site.directory}/access.log"
        self._old = f"{self._path}.1"
        self._file = open(self._path, "rb")
        self._endpoints = {endpoint.address: (key[0], endpoint) for key, endpoint in site.endpoints.items()}
        self._rest = b""
        self.exchanges = 0
        # By service: failures that a dead endpoint excuses.
        self.excused = Counter()
        # The same by endpoint and number of its death.
        self.by_death = Counter()
        self.inexcusable = []

    def close(self):
        self._file.close()

    def read(self):
        """Judge what has been written since."""
        self._read_on()
        # Once there is a new file, nothing is written to the old one.
        if os.path.exists(self._old) and os.path.exists(self._path):
            self._read_on()
            self._file.close()
            self._file = open(self._path, "rb")
            os.remove(self._old)
            self._read_on()

    def _read_on(self):
        while chunk := self._file.read(1 << 20):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self.exchanges += len(lines)
            for line in lines:
                if SERVED not in line:
                    self._judge(json.loads(line))

    def rotate(self):
        """Move the log away, as logrotate does, so that it does not fill the disk."""
        if not os.path.exists(self._old):
            os.rename(self._path, self._old)

    def _judge(self, record):
        begin = datetime.fromisoformat(record["time"].replace("Z", "+00:00")).timestamp()
        end = begin + record["duration_ms"] / 1e3
        service, endpoint = self._endpoints.get(record["endpoint"], (record["service"], None))
        deaths = endpoint.deaths(begin, end) if endpoint else []
        if deaths:
            self.excused[record["service"]] += 1
            self.by_death[endpoint.name, deaths[0]] += 1
        elif record["outcome"] != TUNNEL and not self._is_expected(record, service):
            self.inexcusable.append(
                f"{record['time']} {record['method']} {record['path']} of {record['service']}: "
                f"status {record['status']}, {record['outcome'] or record['local_reply']} "
                f"at {record['endpoint']} after {record['duration_ms']:.0f} ms")

    @staticmethod
    def _is_expected(record, service):
        # wrk and h2load leave in the middle of a response when their time is over. The other is asked for to
        # see that its route is gone: the one that is left leads to nothing.
        return (service == "steady" and record["outcome"] == "client_abort"
                or record["path"] == "/extra" and record["status"] == 404)
