"""Snapshots of a lab with a stand-in stack: what they keep, and what is refused."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.lab.conftest import Sandbox


def _note(sandbox: Sandbox, name: str = "InstanceTwo") -> Path:
    return sandbox.state / name / "home/note"


def _up_names(sandbox: Sandbox) -> list[str]:
    status = json.loads(sandbox.ok("status", "--json"))
    return [one["name"] for one in status["instances"] if one["up"]]


@pytest.fixture
def kept(sandbox: Sandbox) -> Sandbox:
    """A lab that is down, with the snapshot ``kept`` of the note ``before``, changed since."""
    sandbox.ok("up")
    sandbox.ok("halt")
    _note(sandbox).write_text("before")
    sandbox.ok("snapshot", "kept")
    _note(sandbox).write_text("after")
    return sandbox


def test_a_lab_returns_to_a_snapshot_and_is_up_if_it_was(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    secrets = sandbox.state / "secrets/x.json"
    secrets.parent.mkdir(exist_ok=True)
    secrets.write_text("{}")
    log = sandbox.state / "InstanceTwo/log/x.log"
    log.parent.mkdir()
    log.write_text("before")
    _note(sandbox).write_text("before")
    sandbox.ok("snapshot", "kept")
    assert _up_names(sandbox) == ["InstanceOne", "InstanceTwo"]
    sandbox.ok("halt", "InstanceTwo")
    for path in (_note(sandbox), _note(sandbox, "InstanceOne"), log, secrets):
        path.write_text("after")

    sandbox.ok("restore", "kept")
    assert _up_names(sandbox) == ["InstanceOne"]
    assert _note(sandbox).read_text() == "before"
    assert not _note(sandbox, "InstanceOne").exists()
    assert secrets.read_text() == "{}"
    assert log.read_text() == "after"
    sandbox.ok("up")
    assert sandbox.ok("ssh", "InstanceTwo", "--", "cat", "note") == "before"


def test_snapshots_are_listed_until_they_are_removed(kept: Sandbox) -> None:
    kept.ok("snapshot", "second")
    listed = json.loads(kept.ok("snapshots", "--json"))
    assert [(one["name"], one["misfit"]) for one in listed] == [("kept", ""), ("second", "")]
    kept.ok("snapshot", "--delete", "kept")
    [line] = kept.ok("snapshots").splitlines()
    assert line.startswith("second ")
    kept.ok("snapshot", "--delete", "second")
    assert "no snapshots" in kept.ok("snapshots")


def test_what_cannot_be_done_gets_one_line_and_changes_nothing(kept: Sandbox) -> None:
    said = {
        ("snapshot", "kept"): "there is a snapshot kept: choose another name, or remove it",
        ("snapshot", "../x"): "'../x' is no name of a snapshot",
        ("snapshot", ".x"): "'.x' is no name of a snapshot",
        ("snapshot", "x" * 65): "is no name of a snapshot",
        ("snapshot", ""): "'' is no name of a snapshot",
        ("restore", "other"): "no snapshot 'other'; there are: kept",
        ("restore", ".."): "no snapshot '..'; there are: kept",
        ("snapshot", "--delete", "../snapshots/kept"): "no snapshot '../snapshots/kept'",
    }
    for arguments, words in said.items():
        assert words in kept.error(*arguments)

    description = (kept.root / "lab.yaml").read_text()
    kept.describe(description.replace(".2.1", ".3.1"))
    line = kept.error("restore", "kept")
    assert line.startswith("error: the snapshot kept does not fit: the list of instances was ")
    assert "does not fit: the list of instances" in kept.ok("snapshots")
    kept.describe(f"{description}  - {{name: InstanceThree, address: 127.9.3.1}}\n")
    line = "error: InstanceThree has no state yet: run ./setup-env.py up InstanceThree"
    assert kept.error("snapshot", "x") == line
    kept.describe(description)

    path = kept.state / "snapshots/kept/snapshot.json"
    text = path.read_text()
    made = json.loads(text)
    for key in ("the version", "constraints.txt", "the path", "the hypervisor"):
        path.write_text(json.dumps({**made, "of": {**made["of"], key: "another"}}))
        assert f"does not fit: {key} was another, and is " in kept.error("restore", "kept")
    path.write_text(text)

    # The limit has the same effect as a full disk.
    _note(kept, "InstanceOne").write_bytes(b"x" * 3 * 2**20)
    full = ["bash", "-c", 'ulimit -f 2048; exec "$@"', "-", *kept.argv("snapshot", "x")]
    done = subprocess.run(full, env=kept.environment, capture_output=True, check=False, text=True)
    assert done.stderr.startswith("error: the copy failed, and nothing has changed: ")
    assert [one["name"] for one in json.loads(kept.ok("snapshots", "--json"))] == ["kept"]
    assert [path.name for path in (kept.state / "snapshots").iterdir()] == ["kept"]
    assert _note(kept).read_text() == "after"

    choices = kept.state / "choices.json"
    choices.write_text(json.dumps({**json.loads(choices.read_text()), "provider": "hosts"}))
    for command in ("snapshot", "restore"):
        line = kept.error(command, "x")
        assert line.startswith("error: only a lab with the provider local and the stack wheels")


def test_without_a_lab_there_is_nothing_to_keep(sandbox: Sandbox) -> None:
    for command in ("snapshot", "restore"):
        assert sandbox.error(command, "x") == "error: there is no lab: run ./setup-env.py up"
    assert "no snapshots" in sandbox.ok("snapshots")
    assert not sandbox.state.exists()


def test_a_snapshot_that_is_killed_leaves_none_or_a_whole_one(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    sandbox.ok("halt")
    (sandbox.state / "InstanceOne/home/large").write_bytes(b"x" * 100 * 2**20)
    _note(sandbox).write_text("before")
    for number, after in enumerate((0.3, 0.7, 1.0)):
        name = f"s{number}"
        _kill(sandbox, "snapshot", name, after=after)
        names = [one["name"] for one in json.loads(sandbox.ok("snapshots", "--json"))]
        if name not in names:
            assert f"no snapshot '{name}'" in sandbox.error("restore", name)
            sandbox.ok("snapshot", name)
        _note(sandbox).write_text("after")
        sandbox.ok("restore", name)
        assert _note(sandbox).read_text() == "before"
        assert (sandbox.state / "InstanceOne/home/large").stat().st_size == 100 * 2**20
        sandbox.ok("snapshot", "--delete", name)


def test_a_restore_that_is_killed_can_be_repeated(kept: Sandbox) -> None:
    for after in (0.4, 0.7, 1.0):
        _kill(kept, "restore", "kept", after=after)
        kept.ok("restore", "kept")
        assert _note(kept).read_text() == "before"
        _note(kept).write_text("after")


def test_after_half_a_restore_only_a_restore_goes_on(kept: Sandbox) -> None:
    # Killed between two renames.
    snapshots = kept.state / "snapshots"
    (snapshots / ".restoring").write_text("kept")
    (snapshots / ".replaced/InstanceTwo").mkdir(parents=True)
    (kept.state / "InstanceTwo/home").replace(snapshots / ".replaced/InstanceTwo/home")
    line = (
        "error: the restore of the snapshot kept was interrupted: repeat it with "
        "./setup-env.py restore kept"
    )
    assert kept.error("up") == line
    assert kept.error("snapshot", "x") == line
    kept.ok("restore", "kept")
    assert _note(kept).read_text() == "before"
    kept.ok("up")
    assert [path.name for path in snapshots.iterdir()] == ["kept"]


def _kill(sandbox: Sandbox, *arguments: str, after: float) -> None:
    process = subprocess.Popen(
        sandbox.argv(*arguments),
        env=sandbox.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after)
    process.kill()
    process.wait()
