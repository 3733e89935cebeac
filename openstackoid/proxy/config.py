"""The configuration of the scope-aware proxy: data go in, HAProxy's files come out.

The rules themselves, with their reasons, are in ``templates/haproxy.cfg.j2`` and ``scope.lua``.
They run on HAProxy 2.6 and later with Lua 5.3. ``Proxy`` describes one instance's proxy.
``write`` puts its files in place, ``haproxy -W -db -f DIRECTORY/haproxy.cfg`` runs it, and
``reload`` makes it read changed files without dropping a connection.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket as sockets
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

import jinja2
from os_service_types import ServiceTypes

from openstackoid.scope import INSTANCE_NAME, TAG_MARK, URL_PREFIX

#: The longest path of a socket: ``sun_path`` has 108 bytes, and HAProxy binds ``PATH.PID.tmp``.
LONGEST_SOCKET_PATH = 90
#: The files of a proxy.
FILES = (
    "services.map",
    "canonical-tags.map",
    "targets.map",
    "forwarders.list",
    "facts.lua",
    "json.lua",
    "scope.lua",
    "haproxy.cfg",
)
#: The longest line that HAProxy reads from a file of patterns, with some room (its default buffer).
LONGEST_PATTERN = 15_000
#: How many tokens one issuer validates at the same time; other validations wait.
MAX_VALIDATIONS = 16
#: How many names an error message lists before it only counts the rest.
NAMES_SHOWN = 20

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):(?P<port>[0-9]{1,5})")
_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
_PREFIX = re.compile(r"/[A-Za-z0-9][A-Za-z0-9_-]*")
_LOG_TARGET = re.compile(r"(?:stdout|stderr|[A-Za-z0-9_.:/@\[\]-]+)(?: [a-z0-9]+)*")
_AUTHORITY = ServiceTypes()
_PROGRAMS = ("json.lua", "scope.lua")
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("openstackoid.proxy"),
    autoescape=False,  # noqa: S701 - HAProxy's files, not HTML; every value is validated instead
    undefined=jinja2.StrictUndefined,
    # HAProxy and JSON use the usual {{ and {%.
    variable_start_string="<<",
    variable_end_string=">>",
    block_start_string="<%",
    block_end_string="%>",
    comment_start_string="<#",
    comment_end_string="#>",
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


class ProxyError(Exception):
    """A proxy cannot be described, written or queried; the text is one line that says why."""


@dataclass(frozen=True)
class Service:
    """A service of this instance: its official type, first path element and address.

    The service gets the path as the client wrote it, *prefix* included. Without a *url*, scopes may
    name the type, but the instance itself has no such service.

    *keep_alive* reuses connections to the service. It is off by default: if a server closes an
    idle connection by itself, the next POST on it fails (uwsgi's ``http-socket`` closes each one).

    *max_foreign* limits the concurrent requests with tokens of other instances. It has to be below
    the number of workers, so that a hanging issuer leaves some for local requests.

    :raises ProxyError: when the type is not in the service types authority, or HAProxy cannot use a
        value.
    """

    type: str
    prefix: str
    url: str | None = None
    keep_alive: bool = False
    max_foreign: int = 2

    def __post_init__(self) -> None:
        if self.max_foreign < 1:
            raise ProxyError(
                f"service {self.type!r}: {self.max_foreign} foreign requests are too few: "
                "write 1 or more"
            )
        if self.type not in _AUTHORITY.all_types_by_service_type:
            raise ProxyError(
                f"{self.type!r} is not an official service type: write for example image, "
                "not glance"
            )
        if not _PREFIX.fullmatch(self.prefix) or self.prefix == f"/{URL_PREFIX}":
            raise ProxyError(
                f"{self.prefix!r} cannot be the path of service {self.type!r}: "
                f"write one path element such as /{self.type}, and not /{URL_PREFIX}"
            )
        if self.url is not None:
            self._check_url(self.url)

    def _check_url(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or url != f"{parts.scheme}://{parts.netloc}":
            raise ProxyError(
                f"{url!r} is not an address of service {self.type!r}: write http://HOST:PORT"
            )
        _check_address(parts.netloc, f"service {self.type!r}")

    @property
    def address(self) -> str:
        """Host and port of the service."""
        return urlsplit(self.url or "").netloc

    @property
    def tls(self) -> bool:
        """Whether the service speaks HTTPS."""
        return (self.url or "").startswith("https:")


@dataclass(frozen=True)
class Peer:
    """Another instance: its name and its proxy's address, ``127.0.2.1:8888``.

    :raises ProxyError: when either is invalid.
    """

    name: str
    address: str

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_address(self.address, f"peer {self.name!r}")


@dataclass(frozen=True)
class Proxy:
    """The description of one instance's proxy.

    *name* is the instance's name; *bind* is the address that clients use; *issuers* are the
    instances whose tokens are accepted, besides this one; *directory* holds the files and the admin
    socket. *metrics* is the address of the Prometheus exporter (path ``/metrics``); without one, it
    answers on ``metrics.sock`` in the directory. *log* is the target of HAProxy's log lines, in the
    syntax of its ``log`` keyword. *forwarders* are the addresses or networks, besides the peers,
    whose ``X-Forwarded-*`` headers are believed: those of a TLS proxy, for example.

    :raises ProxyError: naming what is wrong, before anything is written.
    """

    name: str
    bind: str
    services: tuple[Service, ...]
    peers: tuple[Peer, ...] = ()
    issuers: tuple[str, ...] = ()
    directory: Path = field(default_factory=Path)
    metrics: str | None = None
    log: str = "stdout format raw local0"
    threads: int | None = None
    forwarders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("services", "peers", "issuers", "forwarders"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "directory", Path(self.directory).absolute())
        _check_name(self.name)
        _check_address(self.bind, f"instance {self.name!r}")
        if self.metrics is not None:
            _check_address(self.metrics, "the metrics")
        if not _LOG_TARGET.fullmatch(self.log):
            raise ProxyError(f"{self.log!r} is not a log target: write 'stdout format raw local0'")
        if self.threads is not None and self.threads < 1:
            raise ProxyError(f"{self.threads} threads are too few: write 1 or more")
        self._check_services()
        self._check_names()
        for forwarder in self.forwarders:
            _check_network(forwarder)
        socket = str(self.socket)
        if len(socket) > LONGEST_SOCKET_PATH or not _PATH.fullmatch(socket):
            raise ProxyError(
                f"directory {str(self.directory)!r} cannot hold the proxy's sockets: use a path "
                f"under {LONGEST_SOCKET_PATH - 12} characters, of letters, digits and ._+-"
            )

    def _check_services(self) -> None:
        _no_twice((service.type for service in self.services), "service type")
        _no_twice((service.prefix for service in self.services), "path")
        if "identity" not in self.service_types:
            raise ProxyError(f"instance {self.name!r} has no identity service: add one")

    def _check_names(self) -> None:
        _no_twice(self.instances, "instance")
        for issuer in self.issuers:
            if issuer not in self.instances:
                raise ProxyError(
                    f"issuer {issuer!r} is not a peer of {self.name!r}, so its tokens cannot be "
                    "validated: add the peer or drop the issuer"
                )

    @property
    def service_types(self) -> tuple[str, ...]:
        """The service types that a scope may name here, in alphabetical order."""
        return tuple(sorted(service.type for service in self.services))

    @property
    def instances(self) -> tuple[str, ...]:
        """The instances that a scope may name here: this one, then the peers."""
        return (self.name, *(peer.name for peer in self.peers))

    @property
    def socket(self) -> Path:
        """HAProxy's admin socket, for ``peer_states`` and for operators."""
        return self.directory / "admin.sock"

    @property
    def logins(self) -> Path:
        """The socket by which the proxy takes logins whose body it has read."""
        return self.directory / "logins.sock"

    @property
    def source(self) -> str | None:
        """The address from which this proxy calls its peers, who know it by that; None for any."""
        host = _host(self.bind)
        try:
            address = ip_address(host)
        except ValueError:
            return None
        return None if address.is_unspecified else host

    def trusts(self, instance: str) -> bool:
        """Whether tokens that *instance* issued are accepted here."""
        return instance == self.name or instance in self.issuers


def render(proxy: Proxy) -> dict[str, str]:
    """The files of *proxy*: names and texts."""
    known = {
        "proxy": proxy,
        "mark": TAG_MARK,
        "url_prefix": URL_PREFIX,
        "canonical_tags": _canonical_tags(proxy),
        "home_pattern": re.escape(proxy.name),
        "longest_pattern": LONGEST_PATTERN,
        "instances_shown": _enumerate(proxy.instances),
        "types_shown": _enumerate(proxy.service_types),
        "max_validations": MAX_VALIDATIONS,
        "source": f" source {proxy.source}" if proxy.source else "",
        "forwarders": sorted({*(_host(peer.address) for peer in proxy.peers), *proxy.forwarders}),
    }
    return {
        name: Path(__file__).with_name(name).read_text()
        if name in _PROGRAMS
        else _TEMPLATES.get_template(f"{name}.j2").render(known)
        for name in FILES
    }


def write(proxy: Proxy, directory: Path | None = None) -> list[Path]:
    """Write the files of *proxy* into its directory, each atomically.

    Returns the files that changed: if the list is empty, a running proxy needs no reload.

    :raises ProxyError: when the directory cannot be written.
    """
    directory = directory or proxy.directory
    changed = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in render(proxy).items():
            path = directory / name
            if not path.is_file() or path.read_text() != text:
                _replace(path, text)
                changed.append(path)
    except OSError as error:
        raise ProxyError(f"cannot write the proxy's files: {error}") from error
    return changed


def peer_states(socket: Path) -> dict[str, str]:
    """The state of each peer, as the proxy with the admin *socket* sees it.

    ``{"InstanceTwo": "UP"}``, in HAProxy's words: ``UP``, ``DOWN``, ``MAINT``, ``UP 1/2``, …

    :raises ProxyError: when no proxy answers there.
    """
    rows = csv.DictReader(_ask(socket, "show stat -1 4 -1").lstrip("# ").splitlines())
    return {
        row["pxname"].removeprefix("peer_"): row["status"]
        for row in rows
        if row["pxname"].startswith("peer_")
    }


def reload(master: int, socket: Path, patience: float = 15.0) -> None:
    """Make the proxy of process *master* reload its files without dropping a connection.

    HAProxy loses a SIGUSR2 that arrives while its master is starting (seen with 2.6). So the signal
    is repeated until another worker answers at the admin *socket*.

    :raises ProxyError: when none does within *patience* seconds; the old worker then goes on.
    """
    before = _worker(socket)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.kill(master, signal.SIGUSR2)
        except ProcessLookupError as error:
            raise ProxyError(f"the proxy is not running: no process {master}") from error
        for _ in range(20):
            time.sleep(0.05)
            if _worker(socket) != before:
                return
    raise ProxyError(
        "the proxy did not load its new configuration and still runs with the old one: "
        f"run haproxy -c -f {socket.parent / 'haproxy.cfg'}"
    )


def _worker(socket: Path) -> str:
    answer = _ask(socket, "show info")
    return next(line for line in answer.splitlines() if line.startswith("Pid:"))


def _ask(socket: Path, command: str) -> str:
    try:
        with sockets.socket(sockets.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    except OSError as error:
        raise ProxyError(f"no proxy answers at {socket}: {error}; is it running?") from error


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _canonical_tags(proxy: Proxy) -> str:
    """A regular expression for tokens with a canonical and valid tag.

    Each instance name ends with its quote, so that none matches the beginning of another.
    """
    issuers = tuple(name for name in proxy.instances if proxy.trusts(name))
    groups = {"instance": proxy.instances}
    if issuers != proxy.instances:
        groups["issuer"] = issuers
    issuer = "issuer" if "issuer" in groups else "instance"
    values = ",".join(
        f'"{service}":"(?&{issuer if service == "identity" else "instance"})'
        for service in proxy.service_types
    )
    defined = "".join(
        f'(?<{group}>(?:{"|".join(map(re.escape, names))})")' for group, names in groups.items()
    )
    return rf"^[^!]*+{TAG_MARK}\{{{values}\}}\z(?(DEFINE){defined})"


def _enumerate(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _check_name(name: str) -> None:
    if not INSTANCE_NAME.fullmatch(name):
        raise ProxyError(
            f"{name!r} is not an instance name: write letters, digits, '.', '_' and '-', 64 at most"
        )


def _check_address(address: str, whose: str) -> None:
    match = _ADDRESS.fullmatch(address)
    if not match or not 0 < int(match["port"]) < 65536:  # noqa: PLR2004
        raise ProxyError(f"{address!r} is not an address for {whose}: write HOST:PORT")


def _check_network(network: str) -> None:
    try:
        ip_network(network)
    except ValueError as error:
        raise ProxyError(f"forwarder {network!r} is not an address or network: {error}") from error


def _host(address: str) -> str:
    """The host in *address*, ``HOST:PORT`` or ``[IPv6]:PORT``."""
    return address.rpartition(":")[0].strip("[]")


def _no_twice(names: Iterable[str], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ProxyError(f"{what} {json.dumps(name)} appears twice")
        seen.add(name)
