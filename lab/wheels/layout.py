"""Where everything of an instance is: paths, ports and URLs."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template

from lab.wheels.netns import Namespace
from lab.wheels.ovn import Ovn
from lab.wheels.services import SERVICES, Service, program_names
from lab.wheels.spec import HTTPS_PORT, PROXY_PORT, Spec
from openstackoid.scope import Scope, scoped_auth_url

#: How far a service moves to leave its port to the proxy.
BEHIND = 10000
#: Where nova-serialproxy answers WebSockets.
CONSOLE_PORT = 6083
DATABASE_PORT = 3306
MESSAGING_PORT = 5672


def endpoint_url(address: str, service: Service, *, ports: bool, https: bool = False) -> str:
    """The URL of *service* through the proxy at *address*: a path there, or a port of its own."""
    port = HTTPS_PORT if https else PROXY_PORT
    place = str(service.port) if ports else f"{port}{service.prefix}"
    return f"http{'s' if https else ''}://{address}:{place}{service.version}"


@dataclass(frozen=True)
class Layout:
    """The paths and addresses of the instance that *spec* describes."""

    spec: Spec

    @cached_property
    def directory(self) -> Path:
        """All that this instance owns."""
        return Path(self.spec.directory)

    @cached_property
    def shared(self) -> Path:
        """What the instances of one host share: the virtual environment, the database template."""
        return Path(self.spec.shared)

    @cached_property
    def etc(self) -> Path:
        """Configuration."""
        return self.directory / "etc"

    @cached_property
    def run(self) -> Path:
        """Sockets and pid files."""
        return self.directory / "run"

    @cached_property
    def log(self) -> Path:
        """One log per program."""
        return self.directory / "log"

    @cached_property
    def data(self) -> Path:
        """State: the database, the queues, images, keys."""
        return self.directory / "data"

    @cached_property
    def home(self) -> Path:
        """The home directory of the instance's user."""
        return Path(self.spec.home)

    @cached_property
    def supervisor_socket(self) -> Path:
        """Where supervisord answers."""
        return self.run / "supervisor.sock"

    @cached_property
    def epmd_port(self) -> int:
        """A port of its own for Erlang's port mapper, which always listens on 127.0.0.1 too."""
        return 20000 + (int(ipaddress.ip_address(self.spec.address)) >> 8) % 10000

    @cached_property
    def erlang_port(self) -> int:
        """The port of RabbitMQ's Erlang distribution, which it looks for on 127.0.0.1 too."""
        return self.epmd_port + 10000

    @property
    def prefix(self) -> Path:
        """The virtual environment of the stack."""
        return Path(sys.prefix)

    @property
    def auth_url(self) -> str:
        """The identity service, through the proxy."""
        return self.endpoint("identity")

    @property
    def has_ports(self) -> bool:
        """Whether each service has a port of its own at the proxy, and knows no prefix."""
        return self.spec.endpoints == "ports"

    def port(self, service: Service) -> int:
        """Where *service* listens at the instance's address, and only the proxy calls it."""
        return service.port + (BEHIND if self.has_ports else 0)

    def url(self, service: Service) -> str:
        """The URL of *service* behind the proxy, without a path."""
        return f"http://{self.spec.address}:{self.port(service)}"

    def root(self, service: Service) -> str:
        """The URL of *service* behind the proxy, with the prefix that it expects."""
        return f"{self.url(service)}{'' if self.has_ports else service.prefix}"

    def frontends(self, service: Service) -> tuple[str, ...]:
        """Where the proxy takes the clients of *service* alone."""
        scheme = "https://" if self.spec.https else ""
        return (f"{scheme}{self.spec.address}:{service.port}",) if self.has_ports else ()

    @property
    def interface(self) -> str:
        """Which endpoints of the catalog the instance's own services use."""
        return "internal" if self.spec.https else "public"

    def endpoint(self, service_type: str) -> str:
        """The URL of *service_type* through the proxy, for the instance's own services."""
        ports = self.has_ports and not self.spec.https
        return endpoint_url(self.spec.address, self.service(service_type), ports=ports)

    def public_endpoint(self, service_type: str, scope: Mapping[str, str] | None = None) -> str:
        """The URL of *service_type* through the proxy for clients, in *scope* if there is one."""
        service, spec = self.service(service_type), self.spec
        url = endpoint_url(spec.address, service, ports=self.has_ports, https=spec.https)
        return url if scope is None else scoped_auth_url(url, Scope(scope))

    @property
    def services(self) -> tuple[Service, ...]:
        """The records of the instance's services."""
        return SERVICES[self.spec.hypervisor]

    @property
    def program_names(self) -> tuple[str, ...]:
        """All programs of the instance, in the order in which they start."""
        return program_names(self.spec.hypervisor)

    def service(self, service_type: str) -> Service:
        """The service of *service_type*."""
        return next(service for service in self.services if service.type == service_type)

    @cached_property
    def namespace(self) -> Namespace:
        """The network namespace of an instance with the hypervisor ``libvirt``."""
        public = self.spec.public
        return Namespace(
            self.directory.parent,
            self.spec.name,
            ipaddress.IPv4Interface(public["gateway"]),
            reach_peers=public["reach_peers"],
            reach_outside=public["reach_outside"],
            peers=public["peers"],
            address=self.spec.address,
        )

    @cached_property
    def ovn(self) -> Ovn:
        """Open vSwitch and OVN of an instance with the hypervisor ``libvirt``."""
        return Ovn(
            self.spec.name, self.namespace.name, self.run / "ovn", self.data / "ovn", self.log
        )

    @cached_property
    def overlay(self) -> Path:
        """The files that nova-compute sees instead of the host's own (lab.wheels.netns.enter)."""
        return self.etc / "overlay"

    @cached_property
    def emulator(self) -> Path:
        """The directory of the QEMU that libvirt finds (:func:`lab.wheels.ovn.make_emulator`)."""
        return self.data / "bin"

    @cached_property
    def libvirt(self) -> Path:
        """A short name for libvirt's own directory, ``data/libvirt``.

        The path of a guest's monitor socket would be too long otherwise (sun_path in unix(7)).
        """
        return Path("/run", self.namespace.device)

    def fill(self, text: str) -> str:
        """*text* of a service's record with its ``$words`` replaced."""
        return Template(text).substitute(
            etc=self.etc,
            run=self.run,
            emulator=self.emulator,
            namespace=self.namespace.name if self.spec.has_guests else "",
            name=self.spec.name,
            endpoint=self.endpoint("identity"),
            password=self.spec.passwords["admin"],
            uid=os.getuid(),
            gid=os.getgid(),
        )

    def environment(self, service: Service) -> dict[str, str]:
        """The environment variables of the programs and commands of *service*."""
        filled = {name: self.fill(text) for name, text in service.environment.items()}
        return {**service.switches, **filled}

    def database(self, name: str) -> str:
        """The SQLAlchemy URL of the database *name*."""
        account = f"openstack:{self.spec.passwords['database']}"
        return f"mysql+pymysql://{account}@{self.spec.address}:{DATABASE_PORT}/{name}?charset=utf8"

    @property
    def transport(self) -> str:
        """The oslo.messaging URL of the message queue."""
        account = f"openstack:{self.spec.passwords['messaging']}"
        return f"rabbit://{account}@{self.spec.address}:{MESSAGING_PORT}/"
