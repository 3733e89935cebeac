"""The provider ``vagrant``: the Vagrantfile's machines, controlled with python-vagrant."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeVar

from lab import hypervisors
from lab.config import Lab
from lab.errors import LabError
from lab.parallel import for_each
from lab.providers.base import Finding
from lab.providers.machines import Machines
from lab.steps import Steps

T = TypeVar("T")

# ECMA-48, EL
_ERASE_LINE = "\033[K"

#: Debian packages of the hypervisor behind Vagrant's providers; VirtualBox is not in Debian.
PACKAGES = {
    "libvirt": (
        "vagrant-libvirt",
        "libvirt-daemon-system",
        "qemu-system-x86",
        # The others only recommend these, but no machine starts without them.
        "qemu-utils",
        "dnsmasq-base",
    ),
    "lxc": ("vagrant-lxc", "lxc"),
    "docker": ("docker.io",),
}


class Vagrant(Machines):
    """One machine for each instance, on Vagrant's hypervisor."""

    name = "vagrant"

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._chosen = lab.vagrant.provider if lab.vagrant else None
        self._driver = lab.vagrant.driver if lab.vagrant else None

    @property
    def debian_packages(self) -> tuple[str, ...]:
        """The packages of Vagrant and its hypervisor that this machine lacks; probes for them."""
        packages = ["openssh-client"]
        # A Vagrant from elsewhere, for example from HashiCorp, stays.
        if shutil.which("vagrant") is None:
            packages.append("vagrant")
        if self._chosen and not hypervisors.works(self._chosen, self._driver):
            packages += PACKAGES.get(self._chosen, ())
        return tuple(packages)

    def halt(self, names: Sequence[str]) -> None:
        """``vagrant halt``."""
        made = [name for name in names if name in self._endpoints()]
        self._call(lambda vagrant: [vagrant.halt(vm_name=name) for name in made])

    def destroy(self) -> None:
        """``vagrant destroy``, then remove Vagrant's files about the former machines."""
        if self._made():
            self._call(lambda vagrant: vagrant.destroy())
        if not self._made():
            shutil.rmtree(self.lab.root / ".vagrant", ignore_errors=True)

    def doctor(self) -> list[Finding]:
        """Whether Vagrant has a working hypervisor, which takes the machines' addresses."""
        found = hypervisors.find(self._chosen, self._driver)
        mend = "install VirtualBox or libvirt, or name another provider in lab.yaml's vagrant"
        findings = [Finding("a hypervisor for Vagrant", found.usable, f"{found.why}: {mend}")]
        if (self._chosen or "virtualbox") == "virtualbox" and hypervisors.works("virtualbox"):
            refused = hypervisors.outside_host_only(one.address for one in self.lab.instances)
            findings.append(
                Finding(
                    "addresses that VirtualBox allows",
                    not refused,
                    f"{', '.join(map(str, refused))}: take addresses of {hypervisors.HOST_ONLY} in "
                    "lab.yaml, or allow others in /etc/vbox/networks.conf",
                )
            )
        return findings

    def _start(self, names: Sequence[str], steps: Steps) -> Mapping[str, str]:
        """``vagrant up``; Vagrant starts machines in parallel if its provider can."""
        if self.lab.vagrant is None:
            raise LabError("lab.yaml: the provider vagrant needs the section vagrant")
        for name in sorted(self._made() - set(self.lab.names)):
            steps.say(
                f"warning: lab.yaml has no instance {name} any more, but its machine is there: "
                f"`vagrant destroy {name}` removes it, and so does ./setup-env.py destroy"
            )
        wanted: Sequence[str | None] = names
        if set(names) == set(self.lab.names):
            wanted = [None]
        with steps.step(None, "vagrant up") as step:

            def up(vagrant: Any) -> None:  # noqa: ANN401 - python-vagrant has no types
                for name in wanted:
                    for line in vagrant.up(vm_name=name, stream_output=True):
                        # What erases its line is progress: thousands of lines for one box.
                        if not line.startswith(_ERASE_LINE):
                            step.log(line.rstrip())

            self._call(up)
        return dict(zip(names, for_each(names, self._ssh_config), strict=True))

    def _made(self) -> set[str]:
        """The names of the machines that Vagrant has made, also of former instances."""
        ids = (self.lab.root / ".vagrant" / "machines").glob("*/*/id")
        return {path.parent.parent.name for path in ids}

    def _way_in(self, name: str) -> str:
        return f"vagrant ssh {name}"

    def _ssh_config(self, name: str) -> str:
        """Vagrant's ssh_config, read after each start: forwarded ports change."""
        return self._call(lambda vagrant: str(vagrant.ssh_config(vm_name=name)))

    def _call(self, action: Callable[..., T]) -> T:
        """The result of *action* with Vagrant.

        :raises LabError: when Vagrant fails, with its standard error.
        """
        import vagrant  # noqa: PLC0415 - warns at import if Vagrant is not installed

        with tempfile.TemporaryFile("w+") as errors:

            @contextlib.contextmanager
            def keep() -> Iterator[IO[str]]:
                yield errors

            try:
                found: Any = vagrant.Vagrant
                return action(found(root=str(self.lab.root), err_cm=keep))
            except RuntimeError as error:
                raise LabError(f"Vagrant is missing: {error}") from error
            except subprocess.CalledProcessError as error:
                errors.seek(0)
                said = " ".join(errors.read().split()) or f"status {error.returncode}"
                raise LabError(f"vagrant {error.cmd[1]}: {said}") from error
