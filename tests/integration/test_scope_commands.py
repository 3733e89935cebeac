"""``openstack scope …`` in a pane."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable

import pytest

from openstackoid.scope import Scope
from tests.conftest import RunningLab
from tests.integration.conftest import Shell

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def run(lab: RunningLab) -> Run:
    """Runs ``openstack scope`` in InstanceOne's shell."""
    return lambda line: lab.ssh(
        "InstanceOne", "openstack", "scope", *shlex.split(line), check=False
    )


def test_the_list_has_all_instances_and_their_state(run: Run, lab: RunningLab) -> None:
    rows = [row for row in json.loads(run("list -f json").stdout) if row["Kind"] != "scope"]
    assert [row["Name"] for row in rows] == list(lab.config.names)
    assert all(row["State"] == "up" and row["Trusted"] for row in rows)
    assert all(0 < row["Latency (ms)"] < 5000 for row in rows)


def test_an_instance_that_hangs_is_down_in_the_list(run: Run, hung: None) -> None:
    rows = {row["Name"]: row for row in json.loads(run("list -f json").stdout)}
    assert rows["InstanceTwo"]["State"] == "down"
    assert rows["InstanceOne"]["State"] == "up"


def test_a_scope_is_shown_service_by_service_with_the_reason(run: Run) -> None:
    rows = json.loads(run("show glance=InstanceTwo -f json").stdout)
    assert {row["Service"]: row["Instance"] for row in rows} == {
        "compute": "InstanceOne",
        "identity": "InstanceOne",
        "image": "InstanceTwo",
        "network": "InstanceOne",
        "placement": "InstanceOne",
    }
    told = json.loads(run("show --scope 'image=InstanceTwo | InstanceOne' -f json").stdout)
    image = next(row for row in told if row["Service"] == "image")
    assert (image["Instance"], image["Because"]) == ("InstanceTwo | InstanceOne", "--scope")


def test_the_url_of_a_scope_is_good_for_any_client(run: Run, lab: RunningLab) -> None:
    url = run("url image=InstanceTwo -f value").stdout.strip()
    assert Scope({"image": "InstanceTwo"}).url_segment() in url
    assert url.startswith(f"http://{lab.config.instance('InstanceOne').address}:")


def test_a_resource_is_found_in_the_instance_that_has_it(run: Run, two: Shell) -> None:
    (found,) = json.loads(run(f"find {two.image} -f json").stdout)
    assert (found["Instance"], found["Type"], found["ID"]) == ("InstanceTwo", "image", two.image)


def test_a_name_is_found_in_every_instance(run: Run) -> None:
    found = json.loads(run("find private --type network -f json").stdout)
    assert [row["Instance"] for row in found] == ["InstanceOne", "InstanceTwo"]


def test_what_is_nowhere_is_not_found(run: Run) -> None:
    assert run("find no-such-thing").returncode == 1


@pytest.mark.parametrize("scope", ["image=InstanceTwo", "identity=InstanceTwo,network=InstanceTwo"])
def test_a_scope_that_works_passes_its_checks(run: Run, scope: str) -> None:
    checked = run(f"check --scope {scope} -f json")
    assert checked.returncode == 0, checked.stderr
    assert {row["Result"] for row in json.loads(checked.stdout)} == {"ok"}


def test_the_check_names_what_is_out_of_reach(run: Run, hung: None) -> None:
    checked = run("check image=InstanceTwo -f json")
    assert checked.returncode == 1
    results = {(row["Check"], row["Instance"]): row["Result"] for row in json.loads(checked.stdout)}
    assert results["reachable", "InstanceTwo"] == "down"
    assert "InstanceTwo cannot be reached" in results["image accepts the token", "InstanceTwo"]
    assert results["compute accepts the token", "InstanceOne"] == "ok"
