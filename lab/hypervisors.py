"""Find out by trial which hypervisors Vagrant can use on this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
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
#: The addresses that VirtualBox allows in host-only networks, and the file in which an
#: administrator allows others: https://www.virtualbox.org/manual/ch06.html#network_hostonly
HOST_ONLY = IPv4Network("192.168.56.0/21")
_HOST_ONLY_SETTINGS = Path("/etc/vbox/networks.conf")
#: Seconds that a probe may take; a hypervisor that hangs does not count.
_PATIENCE = 10


@dataclass(frozen=True)
class Finding:
    """Whether Vagrant is *usable* here, and a phrase that says *why*."""

    usable: bool
    why: str


def find(provider: str | None = None, driver: str | None = None) -> Finding:
    """Whether Vagrant and *provider* (default: some hypervisor) work on this machine."""
    if shutil.which("vagrant") is None:
        return Finding(False, "Vagrant is not installed")
    candidates = (provider,) if provider else _HYPERVISORS
    for name in candidates:
        if works(name, driver):
            return Finding(True, f"Vagrant and {name} work here")
    fault = f"{provider} does not work" if provider else f"neither {' nor '.join(candidates)} works"
    return Finding(False, f"Vagrant is installed, but {fault}")


def decide(provider: str | None = None) -> tuple[str, str]:
    """vagrant if it and *provider* (default: some hypervisor) work, else local; and the reason."""
    found = find(provider)
    return "vagrant" if found.usable else "local", found.why


def outside_host_only(
    addresses: Iterable[IPv4Address], settings: Path = _HOST_ONLY_SETTINGS
) -> list[IPv4Address]:
    """Those of *addresses* that VirtualBox refuses to machines, because of its *settings*."""
    try:
        lines = settings.read_text().splitlines()
    except OSError:
        lines = [f"* {HOST_ONLY}"]
    allowed = []
    for line in lines:
        words = line.replace(",", " ").split()
        for word in words[1:] if words[:1] == ["*"] else ():
            with suppress(ValueError):
                allowed.append(IPv4Network(word, strict=False))
    return [one for one in addresses if not any(one in network for network in allowed)]


def works(provider: str, driver: str | None = None) -> bool:
    """Whether the hypervisor behind Vagrant's *provider*, with libvirt's *driver*, answers."""
    device = None if driver == "qemu" else _DEVICES.get(provider)
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
