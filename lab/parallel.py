"""Do the same for several hosts in parallel, and report every failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lab.errors import LabError

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(items: Iterable[Item], action: Callable[[Item], Result]) -> list[Result]:
    """The results of *action* for *items*, in their order; each item gets its own thread.

    :raises LabError: when *action* raised any: one with the texts of all, after all have ended. Any
        other error is raised unchanged, the first of several.
    """
    every = list(items)
    if not every:
        return []
    with ThreadPoolExecutor(len(every)) as pool:
        jobs = [pool.submit(action, item) for item in every]
    errors = [error for job in jobs if (error := job.exception()) is not None]
    for error in errors:
        if not isinstance(error, LabError) or len(errors) == 1:
            raise error
    if errors:
        raise LabError("; ".join(dict.fromkeys(map(str, errors)))) from errors[0]
    return [job.result() for job in jobs]
