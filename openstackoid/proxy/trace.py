"""A trace: every request that a command caused, in all instances, from their proxies' logs.

A proxy with ``traces`` gives each request an id of its own, in ``X-OpenStack-Request-ID``. Services
hand it on as the global request id (oslo.middleware's ``request_id.py``, nova's ``context.py``), so
a request that a service makes names the one that caused it. The proxy notes in its log

``as``       the id that it gave to the request
``of``       the id that the request came with
``came``     a digest of ``X-Auth-Token`` as it came
``token``    a digest of ``X-Auth-Token`` as it went on, to the service or a peer
``service``  a digest of ``X-Service-Token``
``subject``  a digest of ``X-Subject-Token``: the request asks about this token
``minted``   a digest of the token that a login gave
``agent``    the beginning of ``User-Agent``
``trace``    the trace that a login is of: its URL had ``/trace/NAME`` before the path of identity

A command's first requests are logins, and its others have the tokens of these logins, or come over
the same connections. Services validate tokens without naming a request: such a question belongs to
the request with that token that is under way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from openstackoid.proxy.config import TRACE_PREFIX
from openstackoid.proxy.log import LogLine
from openstackoid.scope import URL_PREFIX

#: How much later a request may seem to have begun than it did (``LogLine.time``).
_ROUNDING = timedelta(milliseconds=1)


@dataclass
class Request:
    """A request that the proxy of *instance* saw, and those that it caused."""

    instance: str
    line: LogLine
    children: list[Request] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The path, without query and without what belongs to scope and trace."""
        words = self.line.uri.partition("?")[0].split("/")[1:]
        if words[0] == URL_PREFIX:
            words = words[2:]
        if words[:1] == [TRACE_PREFIX]:
            words = words[2:]
        return "/" + "/".join(words)

    @property
    def hop(self) -> Request | None:
        """The same request, as the next proxy saw it."""
        if not self.line.is_forwarded:
            return None
        return next((one for one in self.children if one.instance != self.instance), None)

    @property
    def served(self) -> Request:
        """The same request at the last proxy of its way: where a service got it."""
        return self.hop.served if self.hop else self

    @property
    def provider(self) -> str:
        """The instance that served it, or was to: the next proxy may not have got it."""
        backend, _, peer = self.served.line.backend.partition("_")
        return peer if backend in ("peer", "issuer") else self.served.instance

    @property
    def caused(self) -> list[Request]:
        """The requests that the service made for this one."""
        beside = [one for one in self.children if one is not self.hop]
        return sorted([*beside, *(self.hop.caused if self.hop else [])], key=_start)

    @property
    def ways(self) -> list[str]:
        """The instances whose proxies it passed."""
        return [self.instance, *(self.hop.ways if self.hop else [])]

    def all(self) -> Iterator[Request]:
        """This request, and all that it caused."""
        yield self
        for child in self.children:
            yield from child.all()

    def as_dict(self) -> dict[str, Any]:
        """The request as plain data, for JSON; *through* are the proxies that it passed."""
        served = self.served
        return {
            "time": self.line.time.isoformat(timespec="milliseconds"),
            "method": self.line.method,
            "path": self.path,
            "service": served.line.service,
            "instance": self.provider,
            "through": self.ways,
            "status": self.line.status,
            "milliseconds": self.line.milliseconds,
            "request_id": served.line.notes.get("id"),
            "agent": self.line.notes.get("agent", ""),
            "caused": [one.as_dict() for one in self.caused],
        }


def with_trace(auth_url: str, name: str) -> str:
    """*auth_url* for a login of the trace *name*: lower case letters, digits and ``-``.

    >>> with_trace("http://127.0.1.1:8888/scope/e30/identity/v3", "t1")
    'http://127.0.1.1:8888/scope/e30/trace/t1/identity/v3'
    """
    url = urlsplit(auth_url)
    words = url.path.split("/")[1:]
    place = 2 if words[0] == URL_PREFIX else 0
    words[place:place] = [TRACE_PREFIX, name]
    return url._replace(path="/" + "/".join(words)).geturl()


def attribute(
    lines: Iterable[tuple[str, LogLine]], name: str
) -> tuple[list[Request], list[Request]]:
    """The requests of the trace *name*, and all others; each has those that it caused.

    *lines* are those of all proxies, each with the instance of its proxy.
    """
    requests = sorted((Request(instance, line) for instance, line in lines), key=_start)
    minted = {
        digest
        for one in requests
        if one.line.notes.get("trace") == name and (digest := one.line.notes.get("minted"))
    }
    by_id = {one.line.notes["as"]: one for one in requests if "as" in one.line.notes}
    by_token = _by_token(requests)
    first: list[Request] = []
    for one in requests:
        cause = by_id.get(one.line.notes.get("of", "")) or _under_way(one, by_token)
        (cause.children if cause else first).append(one)
    connections = {
        (one.instance, one.line.client)
        for one in first
        if _is_of_client(one, name, minted) and not one.line.client.startswith("unix:")
    }
    ours: list[Request] = []
    others: list[Request] = []
    for one in first:
        has_token = one.line.notes.get("came", "-") != "-"
        connected = not has_token and (one.instance, one.line.client) in connections
        (ours if connected or _is_of_client(one, name, minted) else others).append(one)
    return ours, others


def _is_of_client(request: Request, name: str, minted: Container[str]) -> bool:
    """Whether a client of the trace *name* sent it: a login, or with a token that one *minted*."""
    notes = request.line.notes
    return notes.get("trace") == name or notes.get("came") in minted


_Tokens = Mapping[tuple[str, str], Sequence[Request]]


def _by_token(requests: Iterable[Request]) -> _Tokens:
    """The requests that services got, by instance and digest of one of their tokens."""
    found = defaultdict(list)
    for one in requests:
        if one.line.backend.startswith(("local_", "foreign_")) and one.line.service != "identity":
            for kind in ("token", "service"):
                if digest := one.line.notes.get(kind):
                    found[one.instance, digest].append(one)
    return found


def _under_way(request: Request, by_token: _Tokens) -> Request | None:
    """The latest request under way with the token that *request* asks about."""
    digest = request.line.notes.get("subject", "-")
    for one in reversed(by_token.get((request.instance, digest), ())):
        if one.line.time - _ROUNDING <= request.line.time <= one.line.end:
            return one
    return None


def _start(request: Request) -> datetime:
    return request.line.time
