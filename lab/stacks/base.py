"""The base class of stacks, which install OpenStack on hosts that ssh reaches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lab.config import Instance, Lab
from lab.errors import LabError
from lab.faults import Fault
from lab.passwords import passwords
from lab.providers.base import Host, Needs
from lab.ssh import Remote
from lab.steps import Steps
from openstackoid.scope import Scope, scoped_auth_url

#: Returns the connection to a host, the same one each time.
Connect = Callable[[Host], Remote]


@dataclass(frozen=True)
class ServiceState:
    """One service of an instance: *state* is ``running``, ``stopped``, …; *detail* says more."""

    name: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class InstanceStatus:
    """The present state of an instance: its services, and its proxy's view of each peer."""

    name: str
    address: str
    services: list[ServiceState] = field(default_factory=list)
    peers: dict[str, str] = field(default_factory=dict)


class Stack(ABC):
    """An OpenStack on each of the hosts of *lab*; *connect* reaches a host."""

    #: The name in lab.yaml.
    name: str
    #: What it needs on each host.
    needs: Needs = Needs()
    #: The accounts, including ``admin``, that get a generated password in each instance.
    accounts: tuple[str, ...] = ("admin", "demo")
    #: The account that the panes of other instances use: an ordinary user of the project ``demo``.
    member: str = "demo"
    #: Whether its proxies can note what a trace needs.
    has_traces: bool = False

    @classmethod
    def hypervisor(cls, lab: Lab, *, is_here: bool) -> tuple[str, str]:
        """What runs the servers of *lab*, and why; with *is_here* its hosts are this machine.

        It may start processes. Here: whatever the stack's own settings say.

        :raises LabError: when lab.yaml asks for one that cannot be had.
        """
        return "auto", f"as {cls.name} decides"

    def __init__(self, lab: Lab, connect: Connect) -> None:
        self.lab = lab
        self.connect = connect

    @abstractmethod
    def up(self, hosts: Sequence[Host], steps: Steps) -> None:
        """Bring the OpenStacks on *hosts* up, from any state.

        :raises LabError: when one of them does not come up.
        """

    @abstractmethod
    def halt(self, hosts: Sequence[Host]) -> None:
        """Stop the OpenStacks on *hosts*, keeping their data; ignore stopped ones."""

    @abstractmethod
    def destroy(self, hosts: Sequence[Host]) -> None:
        """Remove everything outside the instances' directories from *hosts*, from any state."""

    @abstractmethod
    def status(self, host: Host) -> InstanceStatus:
        """The state of the OpenStack on *host*, which ssh reaches."""

    @abstractmethod
    def logs(self, host: Host) -> tuple[str, ...]:
        """The services on *host* that have a log, including the proxy."""

    @abstractmethod
    def log_command(
        self, host: Host, services: Sequence[str], *, lines: str, follow: bool
    ) -> list[str]:
        """The command on *host* that prints the logs of *services*.

        *lines* is the number of last lines, or ``+1`` for all, as for tail(1). With *follow*, the
        command keeps printing new lines.
        """

    @abstractmethod
    def auth_url(self, instance: Instance) -> str:
        """The identity endpoint of *instance*, through its own proxy."""

    def trace(self, hosts: Sequence[Host], *, on: bool) -> None:
        """Have the proxies of *hosts* note in their logs what a trace needs, or end that.

        :raises LabError: when the stack has no traces.
        """
        raise LabError(f"the stack {self.name} has no traces")

    def prefix(self, host: Host) -> list[str]:
        """What a command on *host* begins with, to run as the user who has the instance's files."""
        return []

    def links(self, host: Host) -> list[dict[str, Any]]:
        """The links from *host* to its peers, as ``lab.wheels.links.Link`` has them.

        :raises LabError: when the stack cannot break links.
        """
        raise LabError(f"the stack {self.name} breaks no links and no services: use --stack wheels")

    def break_link(self, host: Host, peer: str, fault: Fault) -> None:
        """Give the link from *host* to *peer* this *fault*.

        :raises LabError: when the stack cannot break links, or the proxy does not run.
        """
        self.links(host)

    def heal(self, host: Host, peers: Sequence[str]) -> None:
        """Take the faults of the links from *host* to *peers* away.

        :raises LabError: when the stack cannot break links.
        """
        self.links(host)

    def kill(self, host: Host, services: Sequence[str], *, hang: bool) -> None:
        """Kill *services* on *host*, or with *hang* freeze them, until the next ``up``.

        :raises LabError: when the stack cannot do that, or a service does not end.
        """
        self.links(host)

    def regions(self, name: str) -> Mapping[str, Mapping[str, str]]:
        """The regions in the catalog of the instance *name*, besides its own, and their scopes."""
        return {}

    def cacert(self, host: Host | None = None) -> str | None:
        """The file with the authority of HTTPS for clients on *host*, or on this machine."""
        return None

    def clouds(self, home: str | None = None, cacert: str | None = None) -> dict[str, Any]:
        """The content of ``clouds.yaml``: each instance's administrator, through its own proxy.

        For a shell in the instance *home*, the other instances have their ordinary users, and
        *cacert* is the file with the authority there. Each named scope is a cloud, too, as seen
        from *home* (default: the first instance).
        """
        cacert = cacert or self.cacert()

        def cloud(instance: Instance) -> dict[str, Any]:
            regions = self.regions(instance.name)
            user, project = ("admin", "admin")
            if home not in (None, instance.name):
                user, project = (self.member, "demo")
            return {
                # Not "password": its discovery hides the proxy's error about a bad scope.
                "auth_type": "v3password",
                "auth": {
                    "auth_url": self.auth_url(instance),
                    "username": user,
                    "password": passwords(self.lab, instance.name, self.accounts)[user],
                    "project_name": project,
                    "user_domain_name": "Default",
                    "project_domain_name": "Default",
                },
                "region_name": instance.name,
                # openstacksdk takes no other region than these.
                **({"regions": [instance.name, *regions]} if regions else {}),
                "identity_api_version": 3,
                **({"cacert": cacert} if cacert else {}),
            }

        def scoped(scope: Mapping[str, str]) -> dict[str, Any]:
            first = self.lab.instance(home) if home else self.lab.instances[0]
            # The issuer knows the user, and its catalog is the one that the client gets.
            settings = cloud(self.lab.instance(scope.get("identity", first.name)))
            plain = cloud(first)["auth"]["auth_url"]
            settings["auth"]["auth_url"] = scoped_auth_url(plain, Scope(scope))
            return settings

        return {
            "clouds": {
                **{instance.name: cloud(instance) for instance in self.lab.instances},
                **{name: scoped(scope) for name, scope in self.lab.plain_scopes.items()},
            },
            "scopes": {name: dict(scope) for name, scope in self.lab.scopes.items()},
        }

    def homes(self, hosts: Iterable[Host]) -> dict[str, str]:
        """The ``clouds.yaml`` for the home of each of *hosts*, by host name."""
        return {
            host.name: yaml.safe_dump(self.clouds(host.name, self.cacert(host)), sort_keys=False)
            for host in hosts
        }
