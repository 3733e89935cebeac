"""Real Vagrant machines in a private sandbox of namespaces, which leaves nothing on the host."""

from __future__ import annotations

#: The Debian packages that the host needs for these machines.
PACKAGES = (
    "docker.io",
    "iproute2",
    "mmdebstrap",
    "socat",
    "tinyproxy",
    "vagrant",
)
