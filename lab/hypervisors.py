"""Find out by trial which hypervisors Vagrant can use on this machine."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Per provider of Vagrant, a command that succeeds if its hypervisor answers.
_PROBES: dict[str, tuple[str, ...]] = {
    "virtualbox": ("VBoxManage", "list", "hostinfo"),
    "libvirt": ("virsh", "--connect", "qemu:///system", "version"),
    "lxc": ("lxc-ls", "--version"),
    "docker": ("docker", "info"),
}
#: Devices without which a hypervisor answers, but boots nothing, or takes minutes to.
_DEVICES = {
    "virtualbox": Path("/dev/vboxdrv"),
    "libvirt": Path("/dev/kvm"),
    # The bridge of lxc-net, to which the Vagrantfile connects the machines.
    "lxc": Path("/sys/class/net/lxcbr0"),
}
#: The providers of real virtual machines; containers are used only if lab.yaml names them.
_HYPERVISORS = ("virtualbox", "libvirt")
#: Seconds that a probe may take; a hypervisor that hangs does not count.
_PATIENCE = 10


@dataclass(frozen=True)
class Finding:
    """Whether Vagrant is *usable* here, and a phrase that says *why*."""

    usable: bool
    why: str


def find(provider: str | None = None) -> Finding:
    """Whether Vagrant and *provider* (default: some hypervisor) work on this machine."""
    if shutil.which("vagrant") is None:
        return Finding(False, "Vagrant is not installed")
    candidates = (provider,) if provider else _HYPERVISORS
    for name in candidates:
        if works(name):
            return Finding(True, f"Vagrant and {name} work here")
    fault = f"{provider} does not work" if provider else f"neither {' nor '.join(candidates)} works"
    return Finding(False, f"Vagrant is installed, but {fault}")


def decide(provider: str | None = None) -> tuple[str, str]:
    """vagrant if it and *provider* (default: some hypervisor) work, else local; and the reason."""
    found = find(provider)
    return "vagrant" if found.usable else "local", found.why


def works(provider: str) -> bool:
    """Whether the hypervisor behind Vagrant's *provider* answers."""
    device = _DEVICES.get(provider)
    if device is not None and not device.exists():
        return False
    try:
        done = subprocess.run(
            _PROBES[provider],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, KeyError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
