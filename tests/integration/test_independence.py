"""An instance works alone, accepts only tokens that are meant for it, and recovers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from lab import processes
from lab.providers import provider
from lab.wheels.services import BACKING, Hypervisor
from openstackoid.scope import Scope
from tests.conftest import RunningLab
from tests.integration.conftest import Shell


def _status(lab: RunningLab, name: str, path: str, token: str) -> int:
    """The HTTP status that the proxy of the instance *name* returns."""
    address = lab.config.instance(name).address
    request = urllib.request.Request(
        f"http://{address}:8888{path}", headers={"X-Auth-Token": token}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("path", ["/image/v2/images", "/compute/v2.1/servers"])
def test_a_token_without_its_tag_is_worth_nothing_elsewhere(
    lab: RunningLab, one: Shell, path: str
) -> None:
    token = one.openstack("token issue -f value -c id")
    assert _status(lab, "InstanceOne", path, token) == 200
    assert _status(lab, "InstanceTwo", path, token) == 401
    assert _status(lab, "InstanceTwo", path, Scope({"identity": "InstanceOne"}).tag(token)) == 200


def test_a_tag_that_names_another_issuer_makes_no_token_valid(lab: RunningLab, one: Shell) -> None:
    token = one.openstack("token issue -f value -c id")
    forged = Scope({"identity": "InstanceTwo"}).tag(token)
    assert _status(lab, "InstanceTwo", "/image/v2/images", forged) == 401
    assert _status(lab, "InstanceOne", "/image/v2/images", forged) == 401


@pytest.fixture
def two_halted(lab: RunningLab) -> Iterator[None]:
    lab.setup_env("halt", "InstanceTwo")
    yield
    lab.setup_env("up", "--no-attach")


@pytest.mark.usefixtures("two_halted")
def test_an_instance_does_everything_local_while_the_other_is_down(
    lab: RunningLab, one: Shell
) -> None:
    server = one.json(
        "server create test-alone --image cirros --flavor m1.tiny --network private --wait"
    )
    assert server["status"] == "ACTIVE"
    one.openstack(f"server delete {server['id']} --wait")

    refused = lab.ssh(
        "InstanceOne", "openstack", "image", "list", "--scope", "image=InstanceTwo", check=False
    )
    assert refused.returncode != 0
    assert "InstanceTwo cannot be reached" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_service_that_dies_is_restarted(one: Shell) -> None:
    def state() -> list[str]:
        line = one.run("supervisorctl", "-c", configuration, "status", "glance-api")
        return line.split()

    configuration = str(one.directory / "etc" / "supervisord.conf")
    before = state()[3]
    one.run("kill", "-KILL", before.rstrip(","))
    deadline = time.monotonic() + 60
    while state()[1] != "RUNNING" or state()[3] == before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    deadline = time.monotonic() + 60
    while not one.run("sh", "-c", "openstack image list -f value -c Name 2>&1 || true").strip():
        assert time.monotonic() < deadline
    assert one.openstack("image list -f value -c Name") == "cirros"


def test_the_first_requests_after_a_start_are_answered_like_all_later_ones(
    lab: RunningLab, one: Shell
) -> None:
    token = one.openstack("token issue -f value -c id")
    network = f"http://{lab.config.instance('InstanceOne').address}:8888/networking"
    configuration = str(one.directory / "etc" / "supervisord.conf")

    def answer(path: str) -> bytes:
        request = urllib.request.Request(f"{network}{path}", headers={"X-Auth-Token": token})
        with urllib.request.urlopen(request, timeout=30) as response:
            found: bytes = response.read()
            return found

    one.run("supervisorctl", "-c", configuration, "restart", "neutron-api")
    deadline = time.monotonic() + 60
    while _status(lab, "InstanceOne", "/networking/", "") != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(answer, ["/v2.0/networks?name=private&fields=name"] * 6))
    assert [json.loads(text) for text in answers] == [{"networks": [{"name": "private"}]}] * 6


def test_up_brings_an_instance_back_after_all_its_processes_were_killed(
    lab: RunningLab, two: Shell
) -> None:
    server = two.json(
        "server create test-kept --image cirros --flavor m1.tiny --network private --wait"
    )
    for process in processes.marked(lab.config.state, "InstanceTwo"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    lab.setup_env("up", "--no-attach")
    assert two.json(f"server show {server['id']}")["status"] == "ACTIVE"
    two.openstack(f"server delete {server['id']} --wait")


@pytest.mark.usefixtures("two_halted")
def test_taken_ports_and_their_programs_are_named_quickly(lab: RunningLab) -> None:
    if not provider(lab.config).is_here:
        pytest.skip("this machine has none of the instance's ports")
    address = str(lab.config.instance("InstanceTwo").address)
    started = time.monotonic()
    with socket.create_server((address, 3306)), socket.create_server((address, 9696)):
        refused = lab.setup_env("up", "--no-attach", check=False)
    assert time.monotonic() - started < 10
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("error: InstanceTwo: ")
    for port in (3306, 9696):
        assert re.search(rf"{address}:{port} is taken by .* \(process {os.getpid()}\)", last)


@pytest.fixture
def of_another_installation(lab: RunningLab, two: Shell) -> Iterator[Path]:
    """InstanceTwo's note of the installation that made its data, after a failed migration."""
    if lab.config.stack != "wheels":
        pytest.skip("DevStack migrates its databases itself")
    kept = two.directory / "data" / "mariadb.installed"
    table = "glance.alembic_version"
    [[version]] = two.sql(f"SELECT version_num FROM {table}")
    two.sql(f"UPDATE {table} SET version_num = 'nowhere'")
    two.run("sh", "-c", f"echo another >{kept}")
    refused = lab.setup_env("up", "--no-attach", "InstanceTwo", check=False)
    two.sql(f"UPDATE {table} SET version_num = '{version}'")
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    log = two.directory / "log" / "migration-glance.log"
    assert f"glance-manage db sync failed: status 1 (log: {log})" in last
    assert "`./setup-env.py destroy` gives the data up" in last
    assert "nowhere" in two.run("cat", str(log))
    yield kept
    lab.setup_env("up", "--no-attach")


def test_data_of_another_installation_is_migrated_before_a_service_starts(
    lab: RunningLab, two: Shell, of_another_installation: Path
) -> None:
    status = json.loads(lab.setup_env("status", "--json").stdout)
    [seen] = [one for one in status["instances"] if one["name"] == "InstanceTwo"]
    running = {service["name"] for service in seen["services"] if service["state"] == "running"}
    hypervisor: Hypervisor = "libvirt" if lab.config.has_guests else "fake"
    assert running == set(BACKING[hypervisor])

    assert "databases' schema" in lab.setup_env("up", "--no-attach", "InstanceTwo").stdout
    installed = lab.host("InstanceTwo").shared / "venv" / "installed"
    assert two.run("cat", str(of_another_installation)) == two.run("cat", str(installed))
    assert two.openstack("image list -f value -c Name") == "cirros"
    assert "databases' schema" not in lab.setup_env("up", "--no-attach", "InstanceTwo").stdout


def test_status_tells_every_service_and_peer(lab: RunningLab) -> None:
    status = json.loads(lab.setup_env("status", "--json").stdout)
    for instance in status["instances"]:
        assert {service["state"] for service in instance["services"]} == {"running"}
        assert set(instance["peers"].values()) == {"UP"}
