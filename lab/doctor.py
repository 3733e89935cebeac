"""What is missing on this machine for each provider and stack, and the line that mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import apt
from lab.config import Choices, Lab, load
from lab.errors import LabError
from lab.providers import PROVIDERS, provider
from lab.providers.base import Finding
from lab.providers.local import lacking_memory
from lab.stacks import STACKS, stack_class
from lab.stacks.wheels import GUEST_PACKAGES, unusable


@dataclass(frozen=True)
class Section:
    """What ``doctor`` has found about one subject, the *title*."""

    title: str
    findings: Sequence[Finding]

    def __str__(self) -> str:
        """The section for people to read."""
        marks = (
            f"  ✔ {one.what}" if one.present else f"  ✘ {one.what}: {one.mend}"
            for one in self.findings
        )
        return "\n".join((self.title, *marks))


def examine(root: Path) -> Iterator[Section]:
    """What ``doctor`` tells about this machine, for the lab of the repository *root*.

    :raises LabError: when lab.yaml is wrong.
    """
    labs = {name: _load(root, name) for name in PROVIDERS}
    if all(isinstance(lab, LabError) for lab in labs.values()):
        load(root)
    yield Section("tmux", packaged(["tmux"]))
    for name, lab in labs.items():
        if isinstance(lab, LabError):
            yield Section(f"provider {name}", [Finding("lab.yaml", False, str(lab))])
            continue
        one = provider(lab)
        yield Section(f"provider {name}", [*packaged(one.debian_packages), *one.doctor()])
    for name in STACKS:
        # On hosts elsewhere, `up` brings them.
        yield Section(f"stack {name}", packaged(stack_class(name).needs.packages))
    if isinstance(here := labs["local"], Lab):
        down = [name for name in here.names if not provider(here).is_up(name)]
        fault = lacking_memory(len(down), stack_class("wheels").needs)
        fits = Finding("the instances fit on this machine", not fault, fault)
        yield Section("memory", [fits])
    fault = unusable(is_here=True)
    usable = Finding("real guests on this machine", not fault, fault)
    yield Section("hypervisor libvirt", [usable, *packaged(GUEST_PACKAGES)])


def facts(root: Path) -> dict[str, Any]:
    """What :func:`examine` tells, as plain data.

    :raises LabError: when lab.yaml is wrong.
    """
    return {"sections": [asdict(section) for section in examine(root)]}


def _load(root: Path, name: str) -> Lab | LabError:
    """The lab on the provider *name*, or why it cannot be there."""
    try:
        return load(root, Choices.model_validate({"provider": name}))
    except LabError as error:
        return error


def packaged(names: Iterable[str]) -> list[Finding]:
    """Whether each of the Debian packages *names* is installed.

    :raises LabError: on a machine without Debian's package manager.
    """
    wanted = list(names)
    lacking = apt.missing(wanted)
    return [
        Finding(f"package {name}", name not in lacking, apt.install_line([name])) for name in wanted
    ]
