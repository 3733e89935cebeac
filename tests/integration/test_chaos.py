"""Whatever is killed at whatever moment, the next ``up`` brings the lab back."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ROOT, RunningLab
from tests.integration.conftest import Shell

#: Set this to the seed that a run printed, to repeat that run.
SEED = int(os.environ.get("OPENSTACKOID_CHAOS_SEED", time.time_ns() % 2**32))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    print(f"OPENSTACKOID_CHAOS_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


def _kill(shell: Shell, program: str) -> None:
    """Kill *program* of the instance, or its ``supervisord``, with SIGKILL."""
    name = "" if program == "supervisord" else program
    pid = f"supervisorctl -c {shell.directory}/etc/supervisord.conf pid {name}"
    shell.run("sh", "-c", f"kill -KILL $({pid})")


def _status(lab: RunningLab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lab.setup_env("status", "--json").stdout)["instances"]
    return found


def _up(lab: RunningLab, after: str) -> None:
    """Bring the lab up, and check that every program runs."""
    started = time.monotonic()
    lab.setup_env("up", "--no-attach")
    print(f"up after {after}: {time.monotonic() - started:.1f} s")
    for instance in _status(lab):
        states = {service["name"]: service["state"] for service in instance["services"]}
        stopped = {name: state for name, state in states.items() if state != "running"}
        assert not stopped, f"{instance['name']} after {after}"


def _check_all(lab: RunningLab, shell: Shell) -> None:
    """Check that no port has two programs, and that instances work together."""
    for name in lab.config.names:
        address = str(lab.config.instance(name).address)
        lines = lab.ssh(name, "ss", "-Hltn", "src", address).stdout.splitlines()
        listeners = Counter(line.split()[3] for line in lines)
        assert set(listeners.values()) == {1}, name
    server = shell.json(
        "server create test-chaos --image cirros --flavor m1.tiny --network private --wait"
        """ --scope '{"image": "InstanceTwo"}'"""
    )
    assert server["status"] == "ACTIVE"
    shell.openstack(f"server delete {server['id']} --wait")


def test_up_repairs_an_instance_whichever_programs_were_killed(
    lab: RunningLab, one: Shell, chance: random.Random
) -> None:
    [here] = [found for found in _status(lab) if found["name"] == one.name]
    programs = [service["name"] for service in here["services"]]
    chance.shuffle(programs)
    for group in [*(programs[n::4] for n in range(4)), ["supervisord"]]:
        for program in group:
            _kill(one, program)
        _up(lab, f"a kill of {', '.join(group)}")
    _check_all(lab, one)


def _halt(lab: RunningLab, two: Shell) -> None:
    lab.setup_env("halt", two.name)


def _kill_supervisord(_lab: RunningLab, two: Shell) -> None:
    _kill(two, "supervisord")


@pytest.mark.parametrize("begin", [_halt, _kill_supervisord])
def test_up_continues_after_several_ups_were_killed(
    lab: RunningLab,
    one: Shell,
    two: Shell,
    chance: random.Random,
    begin: Callable[[RunningLab, Shell], None],
) -> None:
    begin(lab, two)
    for _ in range(10):
        killed = subprocess.Popen(
            [str(ROOT / "setup-env.py"), "up", "--no-attach"],
            env=lab.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        moment = chance.uniform(0.2, 6)
        time.sleep(moment)
        killed.kill()
        killed.wait()
        print(f"killed an up after {moment:.2f} s")
    _up(lab, "ten that were killed")
    _check_all(lab, one)
