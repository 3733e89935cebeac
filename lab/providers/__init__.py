"""The providers: ways to get hosts for the instances."""

from __future__ import annotations

from importlib import import_module

from lab.config import Lab
from lab.providers.base import Provider

#: The module and class of each provider; only the chosen module is imported.
PROVIDERS = {
    "local": "lab.providers.local:Local",
    "vagrant": "lab.providers.vagrant:Vagrant",
    "hosts": "lab.providers.hosts:Hosts",
}


def provider(lab: Lab) -> Provider:
    """The provider of *lab*; ``local`` if the lab was never up and has none yet."""
    name = "local" if lab.provider == "auto" else lab.provider
    module, _, cls = PROVIDERS[name].partition(":")
    found: type[Provider] = getattr(import_module(module), cls)
    return found(lab)
