"""What the steps of ``up`` show and log."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from lab.errors import LabError
from lab.steps import Steps


def shown(steps: Steps) -> str:
    file = steps.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def plain(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "log", Console(file=io.StringIO(), width=200))


def test_a_step_shows_one_line_and_keeps_the_rest_in_the_log(tmp_path: Path) -> None:
    with plain(tmp_path) as steps:
        with steps.step("InstanceOne", "databases") as step:
            step.log("a detail\nand another")
        steps.end(steps.begin("InstanceTwo", "schema"))
        with steps.step(None, "release"):
            pass
    assert [line.split()[:3] for line in shown(steps).splitlines()] == [
        ["InstanceOne", "databases", "✔"],
        ["InstanceTwo", "schema", "✔"],
        ["lab", "release", "✔"],
    ]
    log = steps.log_path("InstanceOne").read_text()
    assert "databases: a detail\n" in log
    assert "databases: and another\n" in log
    assert steps.log_path(None).name == "lab.log"


def test_a_failed_step_shows_its_last_lines_and_where_the_log_is(tmp_path: Path) -> None:
    with plain(tmp_path) as steps, pytest.raises(LabError, match="no room"):  # noqa: SIM117
        with steps.step("InstanceOne", "databases") as step:
            step.log("\n".join(f"line {number}" for number in range(100)))
            raise LabError("no room")
    first, *details, where = shown(steps).splitlines()
    assert first.split()[:3] == ["InstanceOne", "databases", "✘"]
    assert [line.strip() for line in details] == [f"line {number}" for number in range(90, 100)]
    assert where.strip() == f"the whole log: {steps.log_path('InstanceOne')}"


def test_a_mistake_in_the_code_becomes_one_line_with_its_traceback_in_the_log(
    tmp_path: Path,
) -> None:
    with plain(tmp_path) as steps, pytest.raises(LabError) as caught:  # noqa: SIM117
        with steps.step("InstanceOne", "databases"):
            raise ValueError("one\ntwo")
    log = steps.log_path("InstanceOne")
    assert str(caught.value) == (f"InstanceOne: databases failed: ValueError: one two; see {log}")
    assert "Traceback" in log.read_text()
    assert "Traceback" not in shown(steps)


def test_steps_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    def work(name: str) -> None:
        for number in range(20):
            with steps.step(name, f"step-{number}") as step:
                step.log(f"of {name}")

    with plain(tmp_path) as steps:
        threads = [threading.Thread(target=work, args=(f"I{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [line.split() for line in shown(steps).splitlines()]
    assert sorted((line[0], line[1]) for line in lines) == sorted(
        (f"I{number}", f"step-{step}") for number in range(8) for step in range(20)
    )
    assert steps.log_path("I3").read_text().count("of I3\n") == 20


def test_on_a_terminal_a_running_step_is_seen_and_then_ticked(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Steps(tmp_path / "log", console) as steps, steps.step("InstanceOne", "databases"):
        steps._live.refresh()
        assert "databases" in shown(steps)
        assert "✔" not in shown(steps)
    assert "✔" in shown(steps)
