"""Several hosts in parallel."""

from __future__ import annotations

import threading

import pytest

from lab.errors import LabError
from lab.parallel import for_each


def test_results_come_in_order_and_all_run_at_once() -> None:
    barrier = threading.Barrier(3, timeout=5)

    def action(number: int) -> int:
        barrier.wait()
        return number * 2

    assert for_each([1, 2, 3], action) == [2, 4, 6]
    assert for_each([], action) == []


def test_all_errors_are_reported() -> None:
    def action(name: str) -> None:
        if name != "Two":
            raise LabError(f"{name}: no disk")

    with pytest.raises(LabError, match=r"^One: no disk; Three: no disk$"):
        for_each(["One", "Two", "Three"], action)


def test_a_bug_of_ours_is_not_hidden_among_errors() -> None:
    def action(name: str) -> None:
        raise LabError(name) if name == "One" else KeyError(name)

    with pytest.raises(KeyError):
        for_each(["One", "Two"], action)
