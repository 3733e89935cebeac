"""Real Vagrant machines in a private sandbox of namespaces: nothing is left on the host."""

from __future__ import annotations

#: The Debian packages that the host needs for them.
PACKAGES = (
    "docker.io",
    "iproute2",
    "mmdebstrap",
    "socat",
    "tinyproxy",
    "vagrant",
)
