"""What an instance shall be: the orchestrator writes it, the host reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lab.wheels.services import SERVICES, Hypervisor
from openstackoid.proxy import PORT

#: Port of every instance's scope-aware proxy, at the instance's own address.
PROXY_PORT = PORT
#: Where a proxy takes its peers, if they speak TLS.
TLS_PORT = 8889
#: Where a proxy takes clients by HTTPS.
HTTPS_PORT = 8443

#: Whether the endpoints are paths of one port, or ports of their own.
Endpoints = Literal["paths", "ports"]

#: The accounts that an instance has a generated password for; ``erlang`` is RabbitMQ's cookie.
ACCOUNTS = (
    *("admin", "demo", "database", "messaging", "erlang"),
    *(service.name for service in SERVICES["fake"] if service.account),
)


@dataclass(frozen=True)
class Spec:
    """One instance, as plain data that survives JSON.

    ``directory``, ``shared`` and ``home`` are absolute paths on the host: the instance's own
    directory, the one that all instances of the host share, and where its user logs in.
    ``peers`` maps the other instances to the ``address:port`` of their proxies; ``issuers`` names
    the instances whose tokens are accepted, and ``policies`` what some of these tokens may do;
    ``passwords`` has one for each of :data:`ACCOUNTS`.
    ``flavors`` have ``name``, ``vcpus``, ``ram`` (MiB) and ``disk`` (GiB); ``networks`` have
    ``name`` and ``cidr``; ``token_cache`` is how many seconds a service believes a validated token;
    ``regions`` maps the regions of the catalog, besides the instance's own, to their scopes;
    ``endpoints`` is the style of all of them; with ``sealed``, peers get sealed tokens;
    with ``tls``, proxies speak TLS with each other, and with ``https``, with clients;
    ``certificates`` then has ``certificate`` and ``ca``, PEM texts;
    ``image`` has ``name`` and ``url`` (or None for one that the host makes). With the hypervisor
    ``libvirt``, ``public`` describes the external network: ``gateway`` is the host's address in it
    (``172.24.1.1/24``), ``reach_peers`` and ``reach_outside`` say where guests may go, and
    ``peers`` maps the external network of each instance on another machine to that machine's
    address. Pages of the lab's dashboard, at the address ``dashboard``, may open consoles.
    """

    name: str
    address: str
    directory: str
    shared: str
    home: str
    peers: Mapping[str, str]
    issuers: tuple[str, ...]
    passwords: Mapping[str, str]
    flavors: tuple[Mapping[str, Any], ...]
    networks: tuple[Mapping[str, Any], ...]
    image: Mapping[str, Any]
    token_cache: int
    regions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    endpoints: Endpoints = "paths"
    sealed: bool = False
    tls: bool = False
    https: bool = False
    certificates: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hypervisor: Hypervisor = "fake"
    public: Mapping[str, Any] = field(default_factory=dict)
    dashboard: str = "127.0.0.1"

    def to_json(self) -> str:
        """The specification as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def has_guests(self) -> bool:
        """Whether servers are real guests, which live in a network namespace."""
        return self.hypervisor == "libvirt"

    @property
    def resources(self) -> str:
        """A digest of all that decides which users, flavors, networks and images there are."""
        parts = (
            *(self.name, self.address, self.passwords, self.flavors, self.networks, self.image),
            *(self.hypervisor, self.public),
            # A change of the accounts reaches labs that have data.
            "service accounts have the role service",
        )
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
