"""Real Vagrant machines in a private sandbox of namespaces, which leaves nothing on the host."""

from __future__ import annotations

from lab.providers import vagrant
from tests.machines import box

_SANDBOX = ("iproute2", "mmdebstrap", "socat", "tinyproxy", "vagrant")
#: By hypervisor, the Debian packages that the host needs for these machines.
PACKAGES = {
    "docker": (*_SANDBOX, *vagrant.PACKAGES["docker"]),
    "libvirt": (*_SANDBOX, *vagrant.PACKAGES["libvirt"], *box.DISK_PACKAGES),
}
