"""The provider ``hosts``: existing machines, which stay when the lab goes."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from lab.config import Instance
from lab.errors import LabError
from lab.parallel import for_each
from lab.providers import login_shell, provision
from lab.providers.base import Finding
from lab.providers.machines import Machines
from lab.steps import Steps

#: Options of the user's ssh configuration that the lab adopts (``ssh -G``, ssh_config(5)).
_OPTIONS = frozenset(
    {
        "hostname",
        "port",
        "user",
        "identityfile",
        "identitiesonly",
        "userknownhostsfile",
        "stricthostkeychecking",
        "proxycommand",
        "proxyjump",
    }
)

_QUIETLY = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=5")


class Hosts(Machines):
    """Machines that are reached at ``ssh`` in lab.yaml; the default is their address."""

    name = "hosts"
    machines_stay = True
    debian_packages = ("openssh-client",)

    def halt(self, names: Sequence[str]) -> None:
        """End the instances' processes; the machines keep running."""
        for name in names:
            if self.is_up(name):
                provision.end_processes(self.administrator(name))

    def destroy(self) -> None:
        """Remove from the machines everything that the lab put there.

        :raises LabError: when one of them is unreachable.
        """
        begun = [
            name for name in self.lab.names if (self._directory / f"{name}.administrator").exists()
        ]
        if begun:
            key = login_shell.key(self._directory / "key")
            for_each(begun, lambda name: provision.remove(self.administrator(name), key))

    def doctor(self) -> list[Finding]:
        """Whether ssh can log in to each of the machines."""
        return [
            Finding(
                f"ssh {_target(one)} for {one.name}",
                subprocess.run(
                    ["ssh", *_QUIETLY, *_words(one), "true"],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                ).returncode
                == 0,
                "set ssh in lab.yaml to a target that accepts your key",
            )
            for one in self.lab.instances
        ]

    def _way_in(self, name: str) -> str:
        return " ".join(["ssh", "-o BatchMode=yes", *_words(self.lab.instance(name))])

    def _start(self, names: Sequence[str], steps: Steps) -> Mapping[str, str]:
        """Find out how ssh reaches them; they run already."""
        return {name: _section(self.lab.instance(name)) for name in names}


def _target(instance: Instance) -> str:
    return instance.ssh or str(instance.address)


def _words(instance: Instance) -> list[str]:
    place, _, port = _target(instance).partition(":")
    return ["-p", port, place] if port else [place]


def _section(instance: Instance) -> str:
    """The user's ssh configuration for the target of *instance*, under the instance's name."""
    shown = subprocess.run(
        ["ssh", "-G", *_words(instance)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if shown.returncode != 0:
        raise LabError(f"{instance.name}: ssh {_target(instance)}: {shown.stderr.strip()}")
    options = [line for line in shown.stdout.splitlines() if line.split(" ")[0] in _OPTIONS]
    return f"Host {instance.name}\n" + "".join(f"    {_by_command(line)}\n" for line in options)


def _by_command(option: str) -> str:
    """*option*, with a ``ProxyJump`` turned into an equivalent ``ProxyCommand``.

    Only the user's own configuration knows the names of jump hosts, and this command reads it.
    """
    keyword, _, jumps = option.partition(" ")
    if keyword != "proxyjump":
        return option
    *before, last = jumps.split(",")
    words = ["-J", ",".join(before)] if before else []
    place = last if last.startswith("ssh://") else f"ssh://{last}"
    return shlex.join(["proxycommand", "ssh", *_QUIETLY, *words, "-W", "[%h]:%p", place])
