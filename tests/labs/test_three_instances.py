"""Expressions over three instances in a lab of their own: one is killed, one hangs."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil
import pytest

from lab import processes
from tests.conftest import RunningLab

#: In the order of ``*``: the home instance, then the others by name.
NAMES = ["InstanceOne", "InstanceThree", "InstanceTwo"]
CREATE = "server create test-everywhere --image cirros --flavor m1.nano --network private --wait"

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(three: RunningLab) -> Run:
    """Runs an ``openstack`` command in InstanceOne's shell."""
    return lambda line: three.ssh("InstanceOne", "openstack", *shlex.split(line), check=False)


def _signal(programs: Sequence[psutil.Process], number: signal.Signals) -> None:
    for program in programs:
        # Some end with another one.
        with suppress(psutil.NoSuchProcess):
            program.send_signal(number)


def _rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_a_server_is_made_in_every_instance_and_removed(run: Run) -> None:
    made = run(f"{CREATE} -f json --scope 'compute=*' --scope-timeout 120")
    assert made.returncode == 0, made.stderr
    assert [(row["Instance"], row["status"]) for row in _rows(made)] == [
        (name, "ACTIVE") for name in NAMES
    ]
    listed = run("server list -f json --scope 'compute=*'")
    assert [(row["Instance"], row["Name"]) for row in _rows(listed)] == [
        (name, "test-everywhere") for name in NAMES
    ]
    removed = run("server delete test-everywhere --wait --scope 'compute=*' --scope-timeout 120")
    assert removed.stdout.splitlines() == [f"{name}: done" for name in NAMES]
    assert _rows(run("server list -f json --scope 'compute=*'")) == []


def test_a_killed_instance_hides_no_other_and_is_back_after_up(run: Run, three: RunningLab) -> None:
    _signal(processes.marked(three.config.state, "InstanceTwo"), signal.SIGKILL)
    began = time.monotonic()
    listed = run("image list -f json --scope 'image=*'")
    took = time.monotonic() - began
    print(f"three instances, one killed: {took:.1f} s")
    assert listed.returncode == 1
    one, other, two = _rows(listed)
    assert (one["Name"], other["Name"]) == ("cirros", "cirros")
    assert (two["Instance"], two["ID"]) == ("InstanceTwo", None)
    assert "instance InstanceTwo cannot be reached" in two["Error"]
    assert took < 10  # A client that waits for its own time-out needs 30 s.

    made = run(
        f"{CREATE} -f value -c status --scope 'compute=InstanceTwo | InstanceThree | InstanceOne'"
        " --scope-timeout 120"
    )
    assert made.stdout == "ACTIVE\n"
    assert "InstanceTwo: 503: instance InstanceTwo cannot be reached" in made.stderr
    found = _rows(run("server list -f json --scope 'compute=InstanceThree & InstanceOne'"))
    assert [row["Instance"] for row in found] == ["InstanceThree"]
    run("server delete test-everywhere --wait --scope compute=InstanceThree")

    three.setup_env("up", "--no-attach")
    assert [row["Instance"] for row in _rows(run("image list -f json --scope 'image=*'"))] == NAMES


def test_an_instance_that_hangs_hides_no_other_and_is_back_when_it_goes_on(
    run: Run, three: RunningLab
) -> None:
    programs = processes.marked(three.config.state, "InstanceThree")
    _signal(programs, signal.SIGSTOP)
    try:
        began = time.monotonic()
        listed = run("server list -f json --scope 'compute=*'")
        print(f"three instances, one hung: {time.monotonic() - began:.1f} s")
        assert listed.returncode == 1
        [failed] = _rows(listed)
        assert failed["Instance"] == "InstanceThree"
        assert "instance InstanceThree cannot be reached" in failed["Error"]
        rows = _rows(run("scope list -f json"))
        states = {row["Name"]: row["State"] for row in rows if row["Kind"] != "scope"}
        assert states == dict.fromkeys(NAMES, "up") | {"InstanceThree": "down"}
    finally:
        _signal(programs, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while run("server list -f json --scope 'compute=*'").returncode != 0:
        assert time.monotonic() < deadline


def test_broken_links_hide_no_instance_but_that_behind_them(run: Run, three: RunningLab) -> None:
    """These proxies speak TLS: it passes a slow link, and a liar's answer is none."""
    one, other, two = NAMES
    three.setup_env("net", one, two, "--delay", "100ms", "--both")
    three.setup_env("net", one, other, "--lie")
    try:
        listed = run("image list -f json --scope 'image=*'")
        assert listed.returncode == 1
        assert [(row["Instance"], row["Name"]) for row in _rows(listed)] == [
            (one, "cirros"),
            (other, None),
            (two, "cirros"),
        ]
        assert f"instance {other} cannot be reached from {one}" in _rows(listed)[1]["Error"]
        rows = json.loads(three.setup_env("net", "--json").stdout)
        links = {(row["from"], row["peer"]): row for row in rows}
        assert {ends: row["fault"] for ends, row in links.items() if row["fault"]} == {
            (one, two): "delay 100ms",
            (two, one): "delay 100ms",
            (one, other): "lie",
        }
        assert (links[one, other]["state"], links[one, other]["error"]) == ("DOWN", "no TLS")
        assert links[one, two]["seconds"] > 0.1 > links[two, other]["seconds"]
    finally:
        three.setup_env("net", "--heal")
    deadline = time.monotonic() + 5
    while run("image list -f json --scope 'image=*'").returncode != 0:
        assert time.monotonic() < deadline
