"""An instance's network has names of its own, and commands that name nothing of another."""

from __future__ import annotations

import ipaddress
import os
import threading
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.wheels import netns
from lab.wheels.netns import Namespace, prefix
from lab.wheels.ovn import Ovn, make_emulator

GATEWAY = ipaddress.IPv4Interface("172.24.7.1/24")
LAB = Path("/srv/a lab/.lab")


def test_names_differ_between_instances_and_between_labs_and_fit_an_interface() -> None:
    every = [
        Namespace(state, instance, GATEWAY)
        for state in (LAB, Path("/srv/other/.lab"))
        for instance in ("InstanceOne", "InstanceTwo")
    ]
    assert len({one.device for one in every}) == len({one.name for one in every}) == 4
    assert all(len(one.device) <= 15 for one in every)
    assert all(one.name.startswith(prefix(one.state)) for one in every)
    assert all(one.device.startswith(prefix(one.state)) for one in every)


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("peers", [True, False])
def test_guests_pass_to_where_they_may_and_nobody_else_comes_in(peers: bool, outside: bool) -> None:
    one = Namespace(LAB, "One", GATEWAY, reach_peers=peers, reach_outside=outside)
    rules = [line.strip() for line in one.ruleset().splitlines()]
    verdict = {True: "accept", False: "drop"}
    assert f'iifname "{one.device}" oifname "{prefix(LAB)}*" {verdict[peers]}' in rules
    assert f'iifname "{one.device}" {verdict[outside]}' in rules
    assert f'oifname "{one.device}" drop' in rules
    assert f'ip saddr 172.24.7.0/24 oifname != "{prefix(LAB)}*" masquerade' in rules


@pytest.mark.parametrize("reached", [True, False])
def test_guests_of_other_machines_and_these_machines_come_in_if_they_may(reached: bool) -> None:
    peers = {"172.24.8.0/24": "192.0.2.8"}
    one = Namespace(LAB, "One", GATEWAY, reach_peers=reached, peers=peers)
    rules = [line.strip() for line in one.ruleset().splitlines()]
    verdict = "accept" if reached else "drop"
    assert f'ip saddr {{ 172.24.8.0/24, 192.0.2.8 }} oifname "{one.device}" {verdict}' in rules
    assert f'iifname "{one.device}" ip daddr {{ 172.24.8.0/24 }} {verdict}' in rules
    [leaving] = [rule for rule in rules if "masquerade" in rule]
    assert "ip daddr != { 172.24.8.0/24 } masquerade" in leaving


def test_the_programs_use_directories_and_sockets_of_the_instance_only() -> None:
    directory = LAB / "One"
    ovn = Ovn("One", "space", directory / "run", directory / "data", directory / "log")
    assert next(iter(ovn.programs)) == "ovsdb-server"
    for command in ovn.programs.values():
        paths = [word for word in command if "/" in word]
        assert paths
        assert all(str(directory) in word for word in paths)
        assert not any(word.startswith("--detach") for word in command)
    for name in ("ovs-vswitchd", "ovn-controller"):
        assert ovn.programs[name][:4] == ("ip", "netns", "exec", "space")
    assert all(str(directory) in value for value in ovn.environment.values())


def test_a_process_with_two_threads_may_not_enter() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(LabError, match="threads cannot enter namespace"):
            netns.enter("space", "One")
    finally:
        done.set()
        thread.join()


def test_a_command_that_fails_is_named_with_what_it_says() -> None:
    with pytest.raises(LabError, match=r"^sh -c echo no >&2; exit 3 fails: no$"):
        netns.run("sh", "-c", "echo no >&2; exit 3")
    with pytest.raises(LabError, match="no-such-command is missing"):
        netns.run("no-such-command")


def test_the_emulator_can_be_run_and_passes_its_arguments_on(tmp_path: Path) -> None:
    make_emulator(tmp_path)
    emulator = tmp_path / "qemu-system-x86_64"
    assert os.access(emulator, os.X_OK)
    assert emulator.read_text().endswith(' -global virtio-net-device.csum=off "$@"\n')
