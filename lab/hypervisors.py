"""Which hypervisors Vagrant can use on this machine: tried, not guessed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Per provider of Vagrant, a command that succeeds where its hypervisor answers.
_PROBES: dict[str, tuple[str, ...]] = {
    "virtualbox": ("VBoxManage", "list", "hostinfo"),
    "libvirt": ("virsh", "--connect", "qemu:///system", "version"),
    "lxc": ("lxc-ls", "--version"),
    "docker": ("docker", "info"),
}
#: Devices without which a hypervisor answers, and still boots nothing or takes minutes for it.
_DEVICES = {
    "virtualbox": Path("/dev/vboxdrv"),
    "libvirt": Path("/dev/kvm"),
    # The bridge of lxc-net, which the Vagrantfile's machines are on.
    "lxc": Path("/sys/class/net/lxcbr0"),
}
#: Those that boot machines of their own; containers are taken only where lab.yaml names them.
_HYPERVISORS = ("virtualbox", "libvirt")
#: Seconds that a probe may take; a hypervisor that hangs is none.
_PATIENCE = 10


@dataclass(frozen=True)
class Finding:
    """Whether Vagrant is *usable* here, and *why*, in half a sentence."""

    usable: bool
    why: str


def find(provider: str | None = None) -> Finding:
    """Whether Vagrant and *provider* (default: some hypervisor) work on this machine."""
    if shutil.which("vagrant") is None:
        return Finding(False, "there is no Vagrant")
    candidates = (provider,) if provider else _HYPERVISORS
    for name in candidates:
        if works(name):
            return Finding(True, f"Vagrant and {name} work here")
    fault = f"{provider} does not work" if provider else f"neither {' nor '.join(candidates)} works"
    return Finding(False, f"Vagrant is here, but {fault}")


def decide(provider: str | None = None) -> tuple[str, str]:
    """Vagrant where it and *provider* (default: some hypervisor) work, else local; and why."""
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
