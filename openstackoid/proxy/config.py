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
from secrets import token_hex
from typing import TypeAlias
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
    "authorities.map",
    "peers.list",
    "facts.lua",
    "json.lua",
    "seal.lua",
    "scope.lua",
    "haproxy.cfg",
)
#: Variables with which HAProxy runs faster. With buffers of this size, glibc otherwise gives memory
#: back to the kernel and asks for it again at every third request (mallopt(3)).
ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": str(64 * 1024**2), "MALLOC_TOP_PAD_": str(1024**2)}
#: The longest line that HAProxy reads from a file of patterns, with some room (its default buffer).
LONGEST_PATTERN = 15_000
#: The file, in the proxy's directory, with the keys that seal tokens; the first one seals.
KEYS = "sealing.keys"
#: What a sealed token begins with (``seal.PREFIX`` in ``seal.lua``).
SEAL = "oid1."
#: How many keys a rotation keeps: the new one, and the one that live tokens have.
KEYS_KEPT = 2
#: The first path element of a traced login, after its scope (``openstackoid.proxy.trace``).
TRACE_PREFIX = "trace"
#: How many tokens one issuer validates at the same time; other validations wait.
MAX_VALIDATIONS = 16
#: Milliseconds between the health checks of a peer that is up, and of one that is down. With more
#: than a hundred peers, checks are rarer, so that a proxy does not make more of them.
CHECK_EVERY, CHECK_DOWN_EVERY, CHECK_SPACING = 1300, 500, 13
#: How many names an error message lists before it only counts the rest.
NAMES_SHOWN = 20

_METHOD = re.compile(r"[A-Z]+")
_ROLE = re.compile(r"[A-Za-z0-9._-]+")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):(?P<port>[0-9]{1,5})")
_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
_PREFIX = re.compile(r"/[A-Za-z0-9][A-Za-z0-9_-]*")
_LOG_TARGET = re.compile(r"(?:stdout|stderr|[A-Za-z0-9_.:/@\[\]-]+)(?: [a-z0-9]+)*")
_AUTHORITY = ServiceTypes()
_PROGRAMS = ("json.lua", "seal.lua", "scope.lua")
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

    The service gets the path as the client wrote it, *prefix* included, unless it is *bare*: a
    service that has a port of its own knows no prefix. The proxy takes its clients at *frontends*,
    besides the address of all services: ``HOST:PORT`` or, with ``Proxy.https``,
    ``https://HOST:PORT``, where paths have no prefix. Without a *url*, scopes may name the type,
    but the instance itself has no such service.

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
    bare: bool = False
    frontends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "frontends", tuple(self.frontends))
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
        if not _PREFIX.fullmatch(self.prefix) or self.prefix[1:] in (URL_PREFIX, TRACE_PREFIX):
            raise ProxyError(
                f"{self.prefix!r} cannot be the path of service {self.type!r}: "
                f"write one path element such as /{self.type}, but not /{URL_PREFIX} or "
                f"/{TRACE_PREFIX}"
            )
        if self.url is not None:
            self._check_url(self.url)
        self._check_frontends()

    def _check_frontends(self) -> None:
        if self.frontends and not self.bare:
            raise ProxyError(
                f"service {self.type!r} has frontends, where paths have no prefix: say that it "
                'knows none ("bare": true), or drop the frontends'
            )
        for frontend in self.frontends:
            _check_address(_plain(frontend), f"a frontend of service {self.type!r}")
            if _plain(frontend) == self.address:
                raise ProxyError(
                    f"service {self.type!r}: the proxy cannot listen at {frontend}, where the "
                    "service itself listens: move the service, and write its new address as url"
                )

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

    Tokens of this instance go to a *sealed* peer only in a form that is worth nothing but what
    their scope needs (``seal.lua``). With *tls*, the address is the one where its proxy takes its
    peers (``Tls.bind``). A peer is recognised by its address, or with *tls*, by its certificate.

    :raises ProxyError: when name or address is invalid.
    """

    name: str
    address: str
    sealed: bool = False
    tls: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_address(self.address, f"peer {self.name!r}")
        if self.sealed and not self.tls and not _is_ip_address(_host(self.address)):
            raise ProxyError(
                f"peer {self.name!r} is sealed without TLS, so its address has to be an IP "
                f"address, and {_host(self.address)!r} is none"
            )


@dataclass(frozen=True)
class Tls:
    """How a proxy speaks TLS with its peers, which know each other by their certificates.

    *certificate* is a PEM file with this instance's certificate, its chain and its key; *ca* has
    the authorities that sign the peers' certificates. A certificate has the instance's name as its
    common name and as a DNS name (``subjectAltName``). The proxy takes its peers at *bind*.

    :raises ProxyError: when HAProxy cannot use a value.
    """

    certificate: Path
    ca: Path
    bind: str

    def __post_init__(self) -> None:
        _set_path(self, "certificate", "tls")
        _set_path(self, "ca", "tls")
        _check_address(self.bind, "the peers")


@dataclass(frozen=True)
class Https:
    """Where a proxy takes clients by HTTPS, besides its other addresses.

    *certificate* is a PEM file with a certificate for the hosts that clients ask for, its chain and
    its key.

    :raises ProxyError: when HAProxy cannot use a value.
    """

    certificate: Path
    bind: str

    def __post_init__(self) -> None:
        _set_path(self, "certificate", "https")
        _check_address(self.bind, "clients by HTTPS")


@dataclass(frozen=True)
class Policy:
    """What the tokens of an issuer may do here; without one, they may do what their roles allow.

    *services* are the types of the services that they reach, *methods* the HTTP methods, *rate* is
    the number of requests per second, *peers* the peers that may bring them (a peer is known by its
    certificate, so this needs TLS); None for any. Of the roles that the issuer confirms, only
    *roles* count here (None for any), and the roles ``admin`` and ``service`` only with *admin*,
    whatever *roles* says.

    :raises ProxyError: when a value is invalid.
    """

    issuer: str
    services: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    rate: int | None = None
    roles: tuple[str, ...] | None = None
    admin: bool = False
    peers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_name(self.issuer)
        whose = f"the policy for {self.issuer}"
        for name in ("services", "methods", "roles", "peers"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for method in self.methods or ():
            if not _METHOD.fullmatch(method):
                raise ProxyError(
                    f"{whose}: {method!r} is not an HTTP method: write GET, for example"
                )
        for role in self.roles or ():
            if not _ROLE.fullmatch(role):
                raise ProxyError(f"{whose}: {role!r} is not a role of letters, digits and ._-")
        if self.rate is not None and self.rate < 1:
            raise ProxyError(f"{whose}: a rate of {self.rate} is too low: write 1 or more")

    @property
    def restricts_roles(self) -> bool:
        """Whether a confirmed role may not count."""
        return self.roles is not None or not self.admin


@dataclass(frozen=True)
class Proxy:
    """The description of one instance's proxy.

    *name* is the instance's name; *bind* is the address that clients use; *issuers* are the
    instances whose tokens are accepted, besides this one, and *policies* say what these tokens may
    do, where an issuer has one; *directory* holds the files and the admin socket; *tls* is how it
    speaks with its peers, *https* how with clients, if not by HTTP alone. *metrics* is the address
    of the Prometheus exporter (path ``/metrics``); without one, it answers on ``metrics.sock`` in
    the directory. *log* is the target of HAProxy's log lines, in the syntax of its ``log`` keyword.
    *forwarders* are the addresses or networks, besides the peers, whose ``X-Forwarded-*`` headers
    are believed: those of a TLS proxy that clients use, for example. A sealed token is good for
    *sealed_for* seconds. With *traces*, the log has what ``openstackoid.proxy.trace`` needs.

    :raises ProxyError: naming what is wrong, before anything is written.
    """

    name: str
    bind: str
    services: tuple[Service, ...]
    peers: tuple[Peer, ...] = ()
    issuers: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    directory: Path = field(default_factory=Path)
    metrics: str | None = None
    log: str = "stdout len 8192 format iso local0"
    threads: int | None = None
    tls: Tls | None = None
    https: Https | None = None
    traces: bool = False
    sealed_for: int = 3600
    forwarders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("services", "peers", "issuers", "policies", "forwarders"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "directory", Path(self.directory).absolute())
        _check_name(self.name)
        _check_address(self.bind, f"instance {self.name!r}")
        if self.metrics is not None:
            _check_address(self.metrics, "the metrics")
        if not _LOG_TARGET.fullmatch(self.log):
            raise ProxyError(f"{self.log!r} is not a log target: write 'stdout format iso local0'")
        if self.threads is not None and self.threads < 1:
            raise ProxyError(f"{self.threads} threads are too few: write 1 or more")
        if self.sealed_for < 1:
            raise ProxyError(f"sealed_for: {self.sealed_for} seconds are too few: write 1 or more")
        self._check_services()
        self._check_tls()
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
        frontends = [one for service in self.services for one in service.frontends]
        addresses = [self.bind, *map(_plain, frontends)]
        addresses += [one.bind for one in (self.tls, self.https) if one]
        _no_twice(addresses, "frontend")
        if self.https is None and frontends != list(map(_plain, frontends)):
            raise ProxyError("a frontend by HTTPS needs https, with its certificate and bind")

    def _check_tls(self) -> None:
        for peer in self.peers:
            if peer.tls and self.tls is None:
                raise ProxyError(
                    f"peer {peer.name!r} speaks TLS, and this proxy does not: say tls, with its "
                    "certificate, ca and bind"
                )

    def _check_names(self) -> None:
        _no_twice(self.instances, "instance")
        for issuer in self.issuers:
            if issuer not in self.instances:
                raise ProxyError(
                    f"issuer {issuer!r} is not a peer of {self.name!r}, so its tokens cannot be "
                    "validated: add the peer or drop the issuer"
                )

        _no_twice((policy.issuer for policy in self.policies), "policy for")
        for policy in self.policies:
            if policy.issuer not in self.issuers:
                raise ProxyError(
                    f"there is a policy for {policy.issuer!r}, which is no issuer: add the issuer "
                    "or drop the policy"
                )
            self._check_bringers(policy)
            for service in policy.services or ():
                if service not in self.service_types:
                    raise ProxyError(
                        f"the policy for {policy.issuer!r}: {self.name!r} has no service of the "
                        f"type {service!r}: use {', '.join(self.service_types)}"
                    )

    def _check_bringers(self, policy: Policy) -> None:
        """Check the peers that may bring the tokens of an issuer."""
        with_tls = [peer.name for peer in self.peers if peer.tls]
        for name in policy.peers or ():
            if name not in with_tls:
                raise ProxyError(
                    f"the policy for {policy.issuer!r} names the peer {name!r}, which is not known "
                    f"by a certificate: use {', '.join(with_tls) or 'tls for that peer'}"
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
    def authorities(self) -> dict[str, str]:
        """What a client of a forward proxy may ask for, each with the prefix of its paths.

        The prefix is ``-`` where the paths have one already. HTTP's default port may be left out.
        """
        found = {self.bind: "-"}
        for service in self.services:
            plain = [one for one in service.frontends if one == _plain(one)]
            found |= dict.fromkeys(plain, service.prefix)
            if service.url and not service.tls:
                found[service.address] = service.prefix if service.bare else "-"
        short = {name[:-3]: prefix for name, prefix in found.items() if name.endswith(":80")}
        return {name.lower(): prefix for name, prefix in (found | short).items()}

    @property
    def socket(self) -> Path:
        """HAProxy's admin socket, for ``peer_states`` and for operators."""
        return self.directory / "admin.sock"

    @property
    def restricts_roles(self) -> bool:
        """Whether there is an issuer whose tokens lose roles here."""
        return any(policy.restricts_roles for policy in self.policies)

    @property
    def seals(self) -> bool:
        """Whether there is a sealed peer."""
        return any(peer.sealed for peer in self.peers)

    @property
    def keys(self) -> Path:
        """The keys that seal tokens."""
        return self.directory / KEYS

    @property
    def logins(self) -> Path:
        """The socket by which the proxy takes logins whose body it has read."""
        return self.directory / "logins.sock"

    @property
    def source(self) -> str | None:
        """The address from which this proxy calls its peers, who know it by that; None for any."""
        host = _host(self.bind)
        return host if _is_ip_address(host) and not ip_address(host).is_unspecified else None

    @property
    def peers_by_address(self) -> dict[str, str]:
        """The names of the peers that are known by an IP address, and not by a certificate."""
        return {
            str(ip_address(_host(peer.address))): peer.name
            for peer in self.peers
            if not peer.tls and _is_ip_address(_host(peer.address))
        }

    def trusts(self, instance: str) -> bool:
        """Whether tokens that *instance* issued are accepted here."""
        return instance == self.name or instance in self.issuers


def render(proxy: Proxy) -> dict[str, str]:
    """The files of *proxy*: names and texts."""
    known = {
        "proxy": proxy,
        "mark": TAG_MARK,
        "url_prefix": URL_PREFIX,
        "trace_prefix": TRACE_PREFIX,
        "canonical_tags": _canonical_tags(proxy),
        "home_pattern": re.escape(proxy.name),
        # The instances whose requests native rules do not send on: this one, and those that get a
        # sealed token.
        "near_pattern": _any_of((proxy.name, *(peer.name for peer in proxy.peers if peer.sealed))),
        "checks_are_rare": len(proxy.peers) * CHECK_SPACING > CHECK_EVERY,
        "check_every": max(CHECK_EVERY, len(proxy.peers) * CHECK_SPACING),
        "check_down_every": max(CHECK_DOWN_EVERY, len(proxy.peers) * CHECK_SPACING // 2),
        "longest_pattern": LONGEST_PATTERN,
        "instances_shown": _enumerate(proxy.instances),
        "authorities_shown": _enumerate(tuple(sorted(proxy.authorities))),
        "types_shown": _enumerate(proxy.service_types),
        "max_validations": MAX_VALIDATIONS,
        "source": f" source {proxy.source}" if proxy.source else "",
        "forwarders": sorted(
            {*(_host(peer.address) for peer in proxy.peers if not peer.tls), *proxy.forwarders}
        ),
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
        if proxy.seals and not (directory / KEYS).is_file():
            rotate_keys(directory)
            changed.append(directory / KEYS)
    except OSError as error:
        raise ProxyError(f"cannot write the proxy's files: {error}") from error
    return changed


def rotate_keys(directory: Path) -> None:
    """Seal with a new key, after a reload; what the last key sealed can still be opened.

    :raises ProxyError: when the keys in *directory* cannot be read or written.
    """
    path = directory / KEYS
    try:
        keys = path.read_text().split() if path.is_file() else []
        _replace(path, "".join(f"{key}\n" for key in [token_hex(32), *keys][:KEYS_KEPT]), 0o600)
    except OSError as error:
        raise ProxyError(f"cannot write the keys: {error}") from error


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


def peer_addresses(socket: Path) -> dict[str, str]:
    """Where the proxy with the admin *socket* reaches each peer now: ``{NAME: "HOST:PORT"}``.

    :raises ProxyError: when no proxy answers there.
    """
    _version, *lines = _ask(socket, "show servers state").splitlines()
    rows = csv.DictReader((line.removeprefix("# ") for line in lines), delimiter=" ")
    return {
        row["srv_name"]: f"{row['srv_addr']}:{row['srv_port']}"
        for row in rows
        if row["be_name"].startswith("peer_")
    }


def redirect_peer(socket: Path, name: str, address: str, *, breaks: bool = False) -> None:
    """Have the proxy with the admin *socket* reach the peer *name* at *address*, ``IP:PORT``.

    It does so until its next reload. Requests under way go on, unless this *breaks* them. HAProxy
    closes idle connections to the former address by itself.

    :raises ProxyError: when no proxy answers there, or it knows no such peer.
    """
    host, _, port = address.rpartition(":")
    servers = [f"{kind}_{name}/{name}" for kind in ("peer", "issuer")]
    commands = [f"set server {server} addr {host} port {port}" for server in servers]
    if breaks:
        commands += [f"shutdown sessions server {server}" for server in servers]
    if name not in peer_addresses(socket):
        raise ProxyError(f"the proxy at {socket} has no peer {name!r}")
    _ask(socket, ";".join(commands))


def master(socket: Path) -> int:
    """The process that reloads the proxy with the admin *socket*: its worker's parent (proc(5)).

    :raises ProxyError: when no proxy answers there.
    """
    worker = _worker(socket).partition(":")[2].strip()
    try:
        status = Path(f"/proc/{worker}/status").read_text()
    except OSError as error:
        raise ProxyError(f"the proxy at {socket} is not on this machine: {error}") from error
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


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


def _replace(path: Path, text: str, mode: int = 0o644) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
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
    defined = "".join(f'(?<{group}>{_any_of(names)}")' for group, names in groups.items())
    # scope.lua opens and judges what this proxy has sealed.
    unsealed = rf"(?!{re.escape(SEAL)})" if proxy.seals else ""
    return rf"^{unsealed}[^!]*+{TAG_MARK}\{{{values}\}}\z(?(DEFINE){defined})"


_Tree: TypeAlias = "dict[str, _Tree]"


def _any_of(names: Iterable[str]) -> str:
    """A regular expression for any of *names*, in the form of a tree.

    Its matches cost the length of a name; those of ``a|b|…`` cost the number of names, too.
    """
    tree: _Tree = {}
    for name in names:
        node = tree
        for character in (*name, ""):
            node = node.setdefault(character, {})
    return _pattern(tree)


def _pattern(node: _Tree) -> str:
    branches = [
        re.escape(character) + _pattern(child)
        for character, child in sorted(node.items())
        if character
    ]
    if not branches:
        return ""
    if "" in node:
        return f"(?:{'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


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


def _plain(frontend: str) -> str:
    """The address of a frontend, which may be one by HTTPS."""
    return frontend.removeprefix("https://")


def _set_path(part: Tls | Https, name: str, where: str) -> None:
    path = Path(getattr(part, name)).absolute()
    object.__setattr__(part, name, path)
    if not _PATH.fullmatch(str(path)):
        raise ProxyError(f"{where}: {str(path)!r} is not a path of letters, digits and ._+-")


def _check_network(network: str) -> None:
    try:
        ip_network(network)
    except ValueError as error:
        raise ProxyError(f"forwarder {network!r} is not an address or network: {error}") from error


def _is_ip_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _host(address: str) -> str:
    """The host in *address*, ``HOST:PORT`` or ``[IPv6]:PORT``."""
    return address.rpartition(":")[0].strip("[]")


def _no_twice(names: Iterable[str], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ProxyError(f"{what} {json.dumps(name)} appears twice")
        seen.add(name)
