"""The providers: ways to get hosts for the instances."""

from __future__ import annotations

from lab.description import Lab
from lab.errors import LabError
from lab.providers.base import Provider

#: All providers by name, with what each gives.
PROVIDERS = {
    "local": "directories and loopback addresses of this machine",
    "vagrant": "virtual machines and containers; not there yet",
    "hosts": "machines that you have; not there yet",
}


def choose(name: str) -> tuple[str, str]:
    """The provider that *name* stands for, and why."""
    if name == "auto":
        return "local", "the vagrant provider is not there yet"
    return name, "as lab.yaml or the command line says"


def provider(lab: Lab) -> Provider:
    """The provider of *lab*.

    :raises LabError: when it is not there yet.
    """
    name, _ = choose(lab.provider)
    if name != "local":
        raise LabError(f"the provider {name} is not there yet: use `--provider local`")
    from lab.providers.local import Local  # noqa: PLC0415 - only the chosen provider is imported

    return Local(lab)
