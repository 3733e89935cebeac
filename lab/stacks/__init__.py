"""The stacks: ways to install an OpenStack on a host."""

from __future__ import annotations

from importlib import import_module

from lab.config import Lab
from lab.errors import LabError
from lab.stacks.base import Connect, Stack

#: The module and class of each stack; only the chosen module is imported.
STACKS = {"wheels": "lab.stacks.wheels:Wheels", "devstack": "lab.stacks.devstack:DevStack"}


def stack_class(name: str) -> type[Stack]:
    """The class of the stack called *name*.

    :raises LabError: when it is not installed.
    """
    module, _, cls = STACKS[name].partition(":")
    try:
        found: type[Stack] = getattr(import_module(module), cls)
    except ImportError as error:
        raise LabError(f"the stack {name} cannot be loaded: {error}") from error
    return found


def stack(lab: Lab, connect: Connect) -> Stack:
    """The stack of *lab*, whose hosts *connect* reaches.

    :raises LabError: when it is not installed.
    """
    return stack_class(lab.stack)(lab, connect)
