"""What every stack is: an OpenStack, put on hosts that ssh reaches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.description import Lab
from lab.providers.base import Finding, Host
from lab.ssh import Remote
from lab.steps import Steps

#: Opens (once, then again the same) the connection to a host.
Connect = Callable[[Host], Remote]


@dataclass(frozen=True)
class ServiceState:
    """One service of an instance: *state* is ``running``, ``stopped``, …; *detail* says more."""

    name: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class InstanceStatus:
    """What an instance looks like now: its services, and its proxy's view of each peer."""

    name: str
    address: str
    services: list[ServiceState] = field(default_factory=list)
    peers: dict[str, str] = field(default_factory=dict)


class Stack(ABC):
    """An OpenStack on each of the hosts."""

    #: As it is called in lab.yaml.
    name: str
    #: Debian packages that it needs on each host.
    debian_packages: tuple[str, ...] = ()

    @abstractmethod
    def up(self, lab: Lab, hosts: Sequence[Host], connect: Connect, steps: Steps) -> None:
        """Bring the OpenStacks on *hosts* up, from any state.

        :raises LabError: when one of them cannot be brought up.
        """

    @abstractmethod
    def halt(self, lab: Lab, hosts: Sequence[Host], connect: Connect) -> None:
        """Stop the OpenStacks on *hosts*, keeping their data; stopped already is no error."""

    @abstractmethod
    def destroy(self, lab: Lab, hosts: Sequence[Host], connect: Connect) -> None:
        """Remove from *hosts* what lies outside of the instances' directories; from any state."""

    @abstractmethod
    def status(self, lab: Lab, host: Host, connect: Connect) -> InstanceStatus:
        """The state of the OpenStack on *host*, which ssh reaches."""

    @abstractmethod
    def logs(self, lab: Lab, host: Host, connect: Connect) -> dict[str, Path]:
        """The log file on *host* of each service, the proxy included."""

    @abstractmethod
    def clouds(self, lab: Lab) -> dict[str, Any]:
        """The content of ``clouds.yaml``: one cloud per instance, called like it."""

    def doctor(self) -> list[Finding]:
        """What else than packages this stack needs from the machine, present or missing."""
        return []
