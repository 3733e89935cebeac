"""What the proxy writes about each request: one JSON object a line.

========== ======================================================================================
key        meaning
========== ======================================================================================
time       when the request began, local time, ``24/Nov/2026:03:01:07.042``
client     who asked: address and port
method     HTTP method
uri        path and query as they arrived, cut at 1024 characters
status     HTTP status of the answer; -1 where none could be sent
service    service type; empty where the path names none
target     instance that the request was for
issuer     instance that issued the caller's token
scope      the resolved scope; ``{}`` for a request without one
frontend   name of the proxy's instance
backend    ``local_<service type>``, ``peer_<instance>``, or the frontend's where it was refused
server     server in that backend; ``<NOSRV>`` where none was reached
timers     ``TR/Tw/Tc/Tr/Ta`` in milliseconds, and ``bytes``, ``state``, ``connections``,
           ``queues``: as in HAProxy's HTTP log format
========== ======================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from openstackoid.scope import Scope


@dataclass(frozen=True)
class LogLine:
    """One request, as the proxy of one instance saw it; the attributes are the keys above."""

    time: datetime
    client: str
    method: str
    uri: str
    status: int
    service: str
    target: str
    issuer: str
    scope: Scope
    frontend: str
    backend: str
    server: str
    timers: str
    bytes: int
    state: str
    connections: str
    queues: str

    @property
    def is_refused(self) -> bool:
        """Whether the proxy answered by itself: neither a service nor a peer saw the request."""
        return self.backend == self.frontend or self.server == "<NOSRV>"

    @property
    def is_forwarded(self) -> bool:
        """Whether the request went on to the proxy of another instance."""
        return self.backend.startswith("peer_") and not self.is_refused


def parse_log_line(line: str) -> LogLine | None:
    """Read one line of the proxy's log; ``None`` where it is a notice of HAProxy's, no request."""
    start = line.find('{"time":')
    if start < 0:
        return None
    # HAProxy writes - for every sample of a request that it could not read, default or not.
    facts: Mapping[str, Any] = json.loads(line[start:].replace('"scope":-,', '"scope":{},'))
    known = {field.name: facts[field.name] for field in fields(LogLine)}
    known["time"] = datetime.strptime(facts["time"], "%d/%b/%Y:%H:%M:%S.%f")
    known["scope"] = Scope(facts["scope"])
    return LogLine(**known)
