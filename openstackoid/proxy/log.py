"""The proxy's log: HAProxy's HTTP log, with the route that the scope chose.

A line begins with the date of the request's end, in ISO 8601, as HAProxy's log targets with
``format iso`` or ``format rfc5424`` write it. HAProxy's own log format (section 8.2.3 of its
configuration manual, without date, captures, connections and queues) is followed by the backend,
the service type and the resolved scope. If the proxy did not need to look at a request's scope, the
line has ``-`` instead, and the backend names the service. Notes follow, ``NAME=VALUE``, where a
token of another instance came or was asked about. In one line::

    2026-11-24T03:01:07.042315+00:00 127.0.0.1:41234 InstanceOne peer_InstanceTwo/InstanceTwo
    0/0/1/35/36 200 1071 ---- "GET /image/v2/images HTTP/1.1" peer_InstanceTwo
    image {"compute":"InstanceOne","identity":"InstanceOne","image":"InstanceTwo"}

The notes are ``token`` and ``subject``, digests of the token and of the token in question; ``id``,
the request id that the service gave; and ``user``, ``user_id``, ``project`` and ``project_id``,
what the issuer says of the subject. For those of a trace, see ``openstackoid.proxy.trace``. No line
has a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from openstackoid.scope import Scope

_LINE = re.compile(
    r"(?:^|\s)(?P<end>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d) "
    # What syslog writes.
    r"(?:.*? )?"
    r"(?P<client>\S+) "
    r"(?P<frontend>[^ ~:]+)(?::[^ ~]+)?~? (?P<backend>[^ /:]+)(?::[^ /]+)?/(?P<server>\S+) "
    r"(?:-?\d+/){4}\+?(?P<milliseconds>-?\d+) (?P<status>-?\d+) \+?(?P<bytes>\d+) (?P<state>\S{4}) "
    r"\"(?P<method>\S+)(?: (?P<uri>\S+?)(?: HTTP/\S+)?)?\" "
    r"(?:-|\S+ (?P<service>\S+) (?P<scope>\{[^{}]*\}))"
    r"(?P<notes>(?: \w+=(?:\"(?:[^\"\\]|\\.)*\"|[^\s\"]+))*)$"
)
_NOTE = re.compile(r" (\w+)=(\"(?:[^\"\\]|\\.)*\"|[^\s\"]+)")
#: How many tokens ``audit`` remembers with their owners.
_REMEMBERED = 10_000


@dataclass(frozen=True)
class LogLine:
    """One request, as the proxy of one instance saw it."""

    #: When the request began, or up to a millisecond later; in the proxy's time zone.
    time: datetime
    #: How long it took, rounded down.
    milliseconds: int
    #: The client's address and port; ``unix:`` and a number for a login that the proxy sends on
    #: after it has read its body.
    client: str
    #: The instance of this proxy.
    frontend: str
    #: ``local_<service type>``, ``foreign_<service type>`` for a token of another instance,
    #: ``peer_<instance>``, ``issuer_<instance>`` for a question about a token, or the frontend
    #: if the proxy refused the request.
    backend: str
    #: The server in that backend; ``<NOSRV>`` if none was reached; ``<lua.login>`` if the proxy
    #: read the body of a login, whose result is in the line of the request that it sent on.
    server: str
    #: HTTP method; ``<BADREQ>`` if HAProxy could not parse the request.
    method: str
    #: Path and query as they arrived, with unprintable characters as ``#XX``; the first 1,000.
    uri: str
    #: HTTP status of the answer; -1 if none could be sent.
    status: int
    #: Size of the answer.
    bytes: int
    #: How the session ended; ``----`` is a normal end.
    state: str
    #: The service type; empty if the path names none.
    service: str
    #: The resolved scope; empty for a request without one.
    scope: Scope
    #: What else the proxy noted.
    notes: Mapping[str, str]

    @property
    def end(self) -> datetime:
        """When the answer was complete."""
        return self.time + timedelta(milliseconds=self.milliseconds)

    @property
    def target(self) -> str:
        """The instance that the request was for."""
        return self.scope.get(self.service, self.frontend)

    @property
    def issuer(self) -> str:
        """The instance that issued the token in question."""
        return self.scope.get("identity", self.frontend)

    @property
    def is_refused(self) -> bool:
        """Whether the proxy answered by itself, so that no service or peer saw the request."""
        is_ours = self.backend == self.frontend and self.server != "<lua.login>"
        return is_ours or self.server == "<NOSRV>"

    @property
    def is_forwarded(self) -> bool:
        """Whether the request went on to the proxy of another instance."""
        return self.backend.startswith(("peer_", "issuer_")) and not self.is_refused


def parse_log_line(line: str) -> LogLine | None:
    """Read one line of the proxy's log.

    ``None`` if it is not a request: a notice of HAProxy's, or a truncated or damaged line.
    """
    match = _LINE.search(line)
    try:
        return match and _log_line(match)
    except (ValueError, OverflowError, RecursionError):  # an invalid date, number or scope
        return None


def _log_line(match: re.Match[str]) -> LogLine:
    end = datetime.fromisoformat(match["end"])
    milliseconds = max(0, int(match["milliseconds"]))
    return LogLine(
        time=end - timedelta(milliseconds=milliseconds),
        milliseconds=milliseconds,
        client=match["client"],
        frontend=match["frontend"],
        backend=match["backend"],
        server=match["server"],
        method=match["method"],
        uri=match["uri"] or "",
        status=int(match["status"]),
        bytes=int(match["bytes"]),
        state=match["state"],
        service=match["service"] or _service_here(match["backend"]),
        scope=_scope(match["scope"] or "{}"),
        notes={
            name: json.loads(value) if value.startswith('"') else value
            for name, value in _NOTE.findall(match["notes"])
        },
    )


def _scope(text: str) -> Scope:
    """The scope in *text*; a refused request's scope may name an unknown instance."""
    services = json.loads(text)
    if not all(isinstance(name, str) for name in services.values()):
        raise ValueError(f"{text} is not a scope")
    return Scope(services)


def _service_here(backend: str) -> str:
    return backend.removeprefix("local_") if backend.startswith("local_") else ""


@dataclass(frozen=True)
class Audited:
    """One request with a token of another instance.

    *user* and *project* are names with their ids, as the issuer said when the token was validated;
    None if no validation is in the log; HAProxy leaves out what is not ASCII. *decision* is
    ``passed``, and then the service answered with *status*, or ``refused``: by the proxy.
    *request_id* is the service's.
    """

    time: str
    issuer: str
    user: str | None
    project: str | None
    peer: str
    method: str
    path: str
    service: str
    instance: str
    decision: str
    status: int
    request_id: str | None


def audit(lines: Iterable[str]) -> Iterator[Audited]:
    """The requests with tokens of other instances in the *lines* of one proxy's log.

    A request's line follows its end, so a validation's line precedes the line of the request that
    it was for. Services remember a validated token for some time.
    """
    owners: dict[str, tuple[str, str]] = {}
    for text in lines:
        line = parse_log_line(text)
        if line is None:
            continue
        if "user" in line.notes:
            if len(owners) >= _REMEMBERED:
                del owners[next(iter(owners))]
            owned = _named(line.notes, "user"), _named(line.notes, "project")
            owners[line.notes["subject"]] = owned
        elif line.backend.startswith("foreign_") or (
            line.is_refused and line.issuer != line.frontend
        ):
            user, project = owners.get(line.notes.get("token", ""), (None, None))
            yield Audited(
                time=line.time.isoformat(timespec="milliseconds"),
                issuer=line.issuer,
                user=user,
                project=project,
                peer=line.client.rpartition(":")[0],
                method=line.method,
                path=line.uri.partition("?")[0],
                service=line.service,
                instance=line.frontend,
                decision="refused" if line.is_refused else "passed",
                status=line.status,
                request_id=line.notes.get("id"),
            )


def _named(notes: Mapping[str, str], what: str) -> str:
    return f"{notes[what]} ({notes[f'{what}_id']})"
