"""The stacks: ways to put an OpenStack on a host."""

from __future__ import annotations

from importlib import import_module

from lab.errors import LabError
from lab.stacks.base import Stack

#: Where the class of each stack is; None for those that are not there yet.
STACKS: dict[str, str | None] = {"wheels": "lab.stacks.wheels:Wheels", "devstack": None}


def stack(name: str) -> Stack:
    """The stack called *name*.

    :raises LabError: when it is unknown, not there yet or not installed.
    """
    if name not in STACKS:
        raise LabError(f"unknown stack {name!r}: known are {', '.join(STACKS)}")
    where = STACKS[name]
    if where is None:
        raise LabError(f"the stack {name} is not there yet: use `--stack wheels`")
    module, _, cls = where.partition(":")
    try:
        found: type[Stack] = getattr(import_module(module), cls)
    except ImportError as error:
        raise LabError(f"the stack {name} cannot be loaded: {error}") from error
    return found()
