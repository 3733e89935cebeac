"""From the lists of clouds' endpoints to the description of a proxy.

The lists are what ``openstack endpoint list -f json`` prints in each cloud. An endpoint whose path
begins with a name, ``http://203.0.113.1/image/v2``, is *path style*: the name is the service's
prefix, and the service expects it. Without one, ``http://203.0.113.1:9292/v2``, it is *port style*:
the proxy then listens at the endpoint's own address and port, and the service answers elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from os_service_types import ServiceTypes

from openstackoid.proxy import PORT
from openstackoid.proxy.config import Https, Peer, Policy, Proxy, ProxyError, Service, Tls
from openstackoid.scope import INSTANCE_NAME, URL_PREFIX

#: The columns that are read.
COLUMNS = ("Region", "Service Type", "Interface", "URL")
INTERFACES = ("public", "internal", "admin")

#: Prefixes of port style services, so that all proxies agree: those of DevStack's endpoints, where
#: they are not the service's type (lib/neutron, lib/cinder, heat, manila, magnum).
_PREFIXES = {
    "network": "/networking",
    "block-storage": "/volume",
    "orchestration": "/heat-api",
    "shared-file-system": "/share",
    "container-infrastructure-management": "/container-infra",
}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_VERSION = re.compile(r"v[0-9]+(?:\.[0-9]+)*|.*[$%]\(.*")
_AUTHORITY = ServiceTypes()


@dataclass(frozen=True)
class Endpoint:
    """One endpoint of a catalog: the instance that has it, service type, interface and URL.

    *type* is the official type, whatever alias the catalog uses.
    """

    instance: str
    type: str
    interface: str
    url: str

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return self._parts.scheme

    @property
    def port(self) -> int:
        """The port, which a URL may leave out."""
        return self._parts.port or _DEFAULT_PORTS[self.scheme]

    @property
    def host(self) -> str:
        """The host, with the brackets of an IPv6 address."""
        host = self._parts.hostname or ""
        return f"[{host}]" if ":" in host else host

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def names(self) -> tuple[str, ...]:
        """The elements of the path before versions and placeholders."""
        elements = [element for element in self._parts.path.split("/") if element]
        return tuple(takewhile(lambda element: not _VERSION.fullmatch(element), elements))

    @property
    def prefix(self) -> str | None:
        """The service's prefix; None for port style."""
        return f"/{self.names[0]}" if self.names else None


@dataclass(frozen=True)
class Catalogs:
    """The endpoints that can be used, and a line for each of those that cannot, with the reason."""

    endpoints: tuple[Endpoint, ...] = ()
    unused: tuple[str, ...] = ()

    def __add__(self, other: Catalogs) -> Catalogs:
        return Catalogs(self.endpoints + other.endpoints, self.unused + other.unused)


@dataclass(frozen=True)
class Wanted:
    """What the lists do not say.

    *instance* is the proxy's own; *bind* and *directory* are those of ``Proxy``. *peers* maps
    instances to the addresses of their proxies, which get sealed tokens if *sealed*, and which
    speak TLS if the address begins with ``https://``; *tls* and *https* are those of ``Proxy``;
    *issuers* are the instances whose tokens are accepted, without the role ``admin``. *behind* is
    the host where the services answer, with the ports of their endpoints; *backends* maps service
    types to the URLs of those that answer elsewhere. *interface* is the one whose endpoints say
    where services answer, if they have it.
    """

    instance: str
    directory: Path = field(default_factory=Path)
    bind: str | None = None
    peers: Mapping[str, str] = field(default_factory=dict)
    issuers: tuple[str, ...] = ()
    behind: str | None = None
    backends: Mapping[str, str] = field(default_factory=dict)
    interface: str = INTERFACES[0]
    sealed: bool = True
    tls: Tls | None = None
    https: Https | None = None


def read(text: str, source: str, instance: str | None = None) -> Catalogs:
    """Read the endpoint lists, one after another, in *text*.

    *source* names the text in messages. The endpoints belong to *instance*, or without one, to
    instances with the names of their regions.

    :raises ProxyError: when the text is something else.
    """
    rows = _rows(text, source)
    regions = sorted({row["Region"] for row in rows})
    if instance and len(regions) > 1:
        raise ProxyError(
            f"{source} has the regions {', '.join(regions)}, and {instance} is one of them: "
            "leave the others out, or leave out the name before the file"
        )
    usable, unused = [], []
    for row in rows:
        endpoint = Endpoint(
            instance or row["Region"],
            _AUTHORITY.get_service_type(row["Service Type"]) or "",
            row["Interface"],
            row["URL"],
        )
        reason = _unusable(endpoint)
        if reason:
            name = f"{endpoint.instance}: {row['Service Type']} {row['Interface']} {row['URL']}"
            unused.append(f"{name} {reason}")
        else:
            usable.append(endpoint)
    return Catalogs(tuple(usable), tuple(unused))


def describe(catalogs: Catalogs, wanted: Wanted) -> tuple[Proxy, list[str]]:
    """The proxy of the instance that is *wanted*, and what of the lists it cannot use.

    :raises ProxyError: when there is no such proxy.
    """
    ours = [one for one in catalogs.endpoints if one.instance == wanted.instance]
    unused = list(catalogs.unused)
    if not ours:
        names = sorted({one.instance for one in catalogs.endpoints})
        raise ProxyError(
            f"no endpoint of {wanted.instance} is usable; the lists have {', '.join(names) or '-'}:"
            " name the instance like its region, or write its name before the file, "
            f"{wanted.instance}=FILE"
        )
    _check_wanted(wanted, ours)
    theirs = [one for one in catalogs.endpoints if one.instance != wanted.instance]
    (login, *_) = [one for one in ours if one.type == "identity"] or ours
    bind = wanted.bind or f"{login.host}:{PORT}"
    for one in _leading_here(ours, theirs, wanted, bind, login):
        ours.remove(one)
        unused.append(
            f"{one.instance}: {one.type} {one.interface} {one.url} leads to this proxy, and so to "
            f"the instances that scopes name: if {one.instance} has the service itself, add "
            f"--backend {one.type}=http://HOST:PORT"
        )
    services = [
        _service(kind, [one for one in ours if one.type == kind], wanted, bind, unused)
        for kind in sorted({one.type for one in ours})
    ]
    unused += [
        f"{name}: its proxy is unknown, so scopes cannot name it: add --peer {name}=HOST:PORT"
        for name in sorted({one.instance for one in theirs} - wanted.peers.keys())
    ]
    reachable = [one for one in theirs if one.instance in wanted.peers]
    services += _elsewhere(services, reachable)
    unused += _disagreements(services, reachable)
    proxy = Proxy(
        name=wanted.instance,
        bind=bind,
        services=tuple(services),
        peers=tuple(_peer(name, at, wanted) for name, at in wanted.peers.items()),
        tls=wanted.tls,
        https=wanted.https,
        issuers=wanted.issuers,
        policies=tuple(Policy(issuer) for issuer in wanted.issuers),
        directory=wanted.directory,
    )
    return proxy, unused


def _rows(text: str, source: str) -> list[dict[str, str]]:
    decoder, rows, position = json.JSONDecoder(), [], 0
    try:
        while rest := text[position:].lstrip():
            found, length = decoder.raw_decode(rest)
            position = len(text) - len(rest) + length
            rows += found if isinstance(found, list) else [found]
    except (ValueError, RecursionError) as error:
        raise ProxyError(f"{source} is not JSON: {error}; see openstack endpoint list") from error
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(c), str) for c in COLUMNS):
            columns = " ".join(f"-c '{column}'" for column in COLUMNS)
            raise ProxyError(
                f"{source} is not a list of endpoints with the columns {', '.join(COLUMNS)}: "
                f"write it with openstack endpoint list -f json {columns}"
            )
    return rows


def _unusable(endpoint: Endpoint) -> str | None:  # noqa: PLR0911 - one line for each reason
    try:
        is_url = endpoint.scheme in _DEFAULT_PORTS and endpoint.host != "" and endpoint.port > 0
    except ValueError:
        is_url = False
    if not is_url:
        return "is not a URL with http or https"
    if not INSTANCE_NAME.fullmatch(endpoint.instance):
        return "has a region that cannot name an instance: write NAME=FILE"
    if not endpoint.type:
        return "has a type that the service types authority does not know"
    if endpoint.interface not in INTERFACES:
        return f"has an interface that is none of {', '.join(INTERFACES)}"
    if endpoint.names[:1] == (URL_PREFIX,):
        return "leads through a scope, and so to another endpoint"
    if len(endpoint.names) > 1:
        return "has several path elements before its version, and a proxy takes one"
    return None


def _check_wanted(wanted: Wanted, ours: Iterable[Endpoint]) -> None:
    types = sorted({one.type for one in ours})
    for kind in wanted.backends:
        if kind not in types:
            raise ProxyError(
                f"--backend {kind}: {wanted.instance} has no such service: use {', '.join(types)}"
            )
    if wanted.instance in wanted.peers:
        raise ProxyError(f"--peer {wanted.instance}: that is the instance itself")


def _leading_here(
    ours: Iterable[Endpoint],
    theirs: Iterable[Endpoint],
    wanted: Wanted,
    bind: str,
    login: Endpoint,
) -> list[Endpoint]:
    """The endpoints at *bind*, the proxy itself, of services that only other instances have.

    If *login* is there, too, the proxy takes an address that services had, and they may answer
    behind it.
    """
    if wanted.behind and login.address == bind:
        return []
    types = {one.type for one in theirs} - {"identity"} - wanted.backends.keys()
    return [one for one in ours if one.address == bind and one.type in types]


def _service(
    kind: str, endpoints: Sequence[Endpoint], wanted: Wanted, bind: str, unused: list[str]
) -> Service:
    """The service of type *kind* at *endpoints*; *unused* gets a line for each that is no use.

    The proxy listens at *bind*.
    """
    prefixes = sorted({str(one.prefix or "none") for one in endpoints})
    if len(prefixes) > 1:
        raise ProxyError(
            f"{kind} of {wanted.instance} has endpoints of several prefixes, "
            f"{', '.join(prefixes)}: leave all but one out of the list"
        )
    for interface in INTERFACES:
        found = [one for one in endpoints if one.interface == interface]
        if len({(one.scheme, one.address) for one in found}) > 1:
            raise ProxyError(
                f"{kind} of {wanted.instance} has several {interface} endpoints, "
                f"{', '.join(one.url for one in found)}: leave all but one out of the list"
            )
    order = (wanted.interface, *INTERFACES)
    endpoints = sorted(endpoints, key=lambda one: order.index(one.interface))
    main, prefix = endpoints[0], endpoints[0].prefix
    url = wanted.backends.get(kind) or f"{main.scheme}://{wanted.behind or main.host}:{main.port}"
    encrypted = [one for one in endpoints if one.scheme == "https" and not prefix]
    plain = [one for one in endpoints if one.scheme == "http" and not prefix]
    frontends = {one.address: one.address for one in plain}
    if wanted.https:
        frontends |= {one.address: f"https://{one.address}" for one in encrypted}
    else:
        unused += [
            f"{one.instance}: {kind} {one.interface} {one.url} needs a certificate: its requests "
            "go past the proxy without --https-bind and --https-certificate"
            for one in encrypted
        ]
    if urlsplit(url).netloc in (bind, *frontends):
        raise ProxyError(
            f"{kind}: at {main.url}, the proxy will listen: say where the service answers then, "
            f"with --behind HOST for all services or --backend {kind}=http://HOST:PORT"
        )
    if prefix:
        return Service(kind, prefix, url)
    return Service(
        kind, _default_prefix(kind), url, bare=True, frontends=tuple(sorted(frontends.values()))
    )


def _elsewhere(services: Iterable[Service], theirs: Iterable[Endpoint]) -> list[Service]:
    """The services that only others have."""
    here = {service.type for service in services}
    found: dict[str, Service] = {}
    for one in theirs:
        if one.type not in here:
            found[one.type] = Service(one.type, one.prefix or _default_prefix(one.type))
    return list(found.values())


def _disagreements(services: Iterable[Service], theirs: Iterable[Endpoint]) -> list[str]:
    prefixes = {service.type: service.prefix for service in services}
    lines = {
        f"{one.instance}: its {one.type} is at {theirs_}, and here at {prefixes[one.type]}: "
        "scopes cannot name it"
        for one in theirs
        if (theirs_ := one.prefix or _default_prefix(one.type)) != prefixes[one.type]
    }
    return sorted(lines)


def _default_prefix(kind: str) -> str:
    return _PREFIXES.get(kind, f"/{kind}")


def _peer(name: str, address: str, wanted: Wanted) -> Peer:
    plain = address.removeprefix("https://").removeprefix("http://").rstrip("/")
    return Peer(name, plain, wanted.sealed, tls=address.startswith("https:"))
