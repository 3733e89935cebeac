"""What every provider is: it gives hosts that ssh reaches, whatever they are made of."""

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
    """Where one instance lives; all paths are paths on that host.

    *directory* is the instance's own, *shared* belongs to all instances on the same host, *home*
    is where a login lands; *source* is this repository there, *python* a Python to base virtual
    environments on, *uv* the path of uv; *environment* has the variables by which packages are
    fetched there. *user* is who logs in. A host that *outlives_lab* has to be left as it was found.
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
    """What a stack needs of each host: Debian packages, and whether its user may become root."""

    packages: tuple[str, ...] = ()
    root: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of ``doctor``: *what* is needed; where it is missing, *mend* is the way out."""

    what: str
    present: bool
    mend: str = ""


class Provider(ABC):
    """Hosts for the instances of *lab*, from nothing to gone."""

    #: As it is called in lab.yaml.
    name: str
    #: Whether its hosts are this machine.
    is_here: bool = False

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._remotes: dict[str, Remote] = {}

    def connect(self, host: Host) -> Remote:
        """The connection to *host*; one for all who ask."""
        if host.name not in self._remotes:
            self._remotes[host.name] = Remote(self.ssh_config, host.name)
        return self._remotes[host.name]

    @property
    def debian_packages(self) -> tuple[str, ...]:
        """Debian packages that it needs on this machine."""
        return ()

    @property
    def ssh_config(self) -> Path:
        """A configuration for ``ssh -F`` in which every instance is a host of its own name."""
        return self.lab.state / "ssh_config"

    @abstractmethod
    def up(self, names: Sequence[str], needs: Needs, steps: Steps) -> list[Host]:
        """Bring the hosts *names* up, from any state, with what a stack *needs* of them.

        Afterwards ssh reaches them.

        :raises LabError: when one of them cannot be brought up.
        """

    @abstractmethod
    def hosts(self) -> list[Host]:
        """The hosts that were made, up or not, in the order of the lab."""

    @abstractmethod
    def halt(self, names: Sequence[str]) -> None:
        """Stop the hosts *names*; what is stopped or unknown already is no error."""

    @abstractmethod
    def destroy(self) -> None:
        """Remove every host without trace, from any state."""

    @abstractmethod
    def is_up(self, name: str) -> bool:
        """Whether ssh reaches the host *name*."""

    def doctor(self) -> list[Finding]:
        """What else than packages this provider needs from the machine, present or missing."""
        return []
