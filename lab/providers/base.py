"""The base class of providers, which supply hosts that ssh reaches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.config import Lab
from lab.ssh import Remote
from lab.steps import Steps


@dataclass(frozen=True)
class Host:
    """The host of one instance; all paths are paths on that host.

    *directory* is the instance's own; all instances on the host share *shared*; *home* is the
    directory after a login. *source* is this repository there, *python* a Python to base virtual
    environments on, *uv* the path of uv. *environment* has the variables that downloads of packages
    need there. *user* is the user who logs in. A host that *outlives_lab* must be left as it was.
    """

    name: str
    address: str
    directory: Path
    shared: Path
    home: Path
    source: Path
    python: str
    uv: str
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    outlives_lab: bool = False


@dataclass(frozen=True)
class Needs:
    """What a stack needs on each host.

    Debian packages, whether its user must become root, and how much *memory* (MiB) an instance
    takes.
    """

    packages: tuple[str, ...] = ()
    root: bool = False
    memory: int = 0


@dataclass(frozen=True)
class Finding:
    """One line of ``doctor``: *what* is needed, and if it is missing, how to *mend* that."""

    what: str
    present: bool
    mend: str = ""


class Provider(ABC):
    """Makes, finds and removes hosts for the instances of *lab*."""

    #: The name in lab.yaml.
    name: str
    #: Whether all hosts are on this machine.
    is_here: bool = False

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._remotes: dict[str, Remote] = {}

    def connect(self, host: Host) -> Remote:
        """The connection to *host*, which all callers share."""
        if host.name not in self._remotes:
            self._remotes[host.name] = Remote(self.ssh_config, host.name)
        return self._remotes[host.name]

    @property
    def debian_packages(self) -> tuple[str, ...]:
        """The Debian packages that the provider needs on this machine."""
        return ()

    @property
    def ssh_config(self) -> Path:
        """A configuration for ``ssh -F`` in which each instance is a host with its name."""
        return self.lab.state / "ssh_config"

    @abstractmethod
    def up(self, names: Sequence[str], needs: Needs, steps: Steps) -> list[Host]:
        """Bring the hosts *names* up, from any state, with what a stack *needs* there.

        Afterwards, ssh reaches them.

        :raises LabError: when one of them does not come up.
        """

    @abstractmethod
    def hosts(self) -> list[Host]:
        """The hosts that were made, up or not, in the order of the lab."""

    @abstractmethod
    def halt(self, names: Sequence[str]) -> None:
        """Stop the hosts *names*; ignore stopped and unknown hosts."""

    @abstractmethod
    def destroy(self) -> None:
        """Remove every host without trace, from any state."""

    @abstractmethod
    def is_up(self, name: str) -> bool:
        """Whether ssh reaches the host *name*."""

    def doctor(self) -> list[Finding]:
        """What this provider needs on this machine besides packages, present or missing."""
        return []
