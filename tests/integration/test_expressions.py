"""Scopes with expressions, as a person types them in a pane."""

from __future__ import annotations

import doctest
import hashlib
import json
import shlex
import subprocess
import time
from typing import Any

import pytest

from openstackoid import sdk
from tests.conftest import RunningLab
from tests.integration.conftest import Shell


@pytest.fixture
def run(lab: RunningLab) -> Any:  # noqa: ANN401
    """Runs an ``openstack`` command in InstanceOne's shell."""

    def run_openstack(line: str) -> subprocess.CompletedProcess[str]:
        return lab.ssh("InstanceOne", "openstack", *shlex.split(line), check=False)

    return run_openstack


def test_a_list_of_both_instances_is_one_list(run: Any, one: Shell, two: Shell) -> None:  # noqa: ANN401
    listed = run('image list -f json -c ID --scope \'{"image": "InstanceOne & InstanceTwo"}\'')
    assert json.loads(listed.stdout) == [
        {"Instance": "InstanceOne", "ID": one.image},
        {"Instance": "InstanceTwo", "ID": two.image},
    ]


def test_a_star_is_every_instance_that_the_proxy_knows(run: Any, lab: RunningLab) -> None:  # noqa: ANN401
    rows = json.loads(run("hypervisor list -f json --scope 'compute=*'").stdout)
    assert [row["Instance"] for row in rows] == list(lab.config.names)


def test_several_services_make_every_combination(run: Any) -> None:  # noqa: ANN401
    scope = "compute=InstanceOne & InstanceTwo, image=InstanceTwo & InstanceOne"
    rows = json.loads(run(f"flavor show m1.tiny -f json -c name --scope '{scope}'").stdout)
    assert [row["Instance"] for row in rows] == [
        "compute=InstanceOne, image=InstanceTwo",
        "compute=InstanceOne, image=InstanceOne",
        "compute=InstanceTwo, image=InstanceTwo",
        "compute=InstanceTwo, image=InstanceOne",
    ]


def test_a_command_that_writes_says_where_it_has(run: Any) -> None:  # noqa: ANN401
    scope = "--scope 'compute=InstanceOne & InstanceTwo'"
    made = run(f"keypair create test-everywhere {scope}")
    assert made.returncode == 0
    removed = run(f"keypair delete test-everywhere {scope}")
    assert removed.stdout == "InstanceOne: done\nInstanceTwo: done\n"


def test_every_instance_gets_the_whole_standard_input(lab: RunningLab, one: Shell) -> None:
    line = "openstack image create test-everywhere --disk-format raw --container-format bare"
    scope = "--scope 'image=*'"
    shell = f"head -c 300000 /dev/zero | {line} {scope} -f value -c checksum"
    try:
        sums = lab.ssh("InstanceOne", "bash", "-c", shell).stdout.split()
        whole = hashlib.md5(bytes(300_000), usedforsecurity=False).hexdigest()
        assert sums.count(whole) == len(lab.config.names)
    finally:
        one.openstack(f"image delete test-everywhere {scope}")


def test_the_examples_of_the_library_hold(lab: RunningLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(lab.config.state / "clouds.yaml"))
    assert doctest.testmod(sdk) == doctest.TestResults(failed=0, attempted=4)


def test_the_first_instance_that_works_serves_alone(run: Any, one: Shell) -> None:  # noqa: ANN401
    shown = run("image show cirros -f value -c id --scope 'image=InstanceOne | InstanceTwo'")
    assert (shown.stdout.strip(), shown.stderr) == (one.image, "")


def test_what_is_not_in_one_instance_is_looked_for_in_the_next(
    run: Any,  # noqa: ANN401
    two: Shell,
) -> None:
    shown = run(f"image show {two.image} -f value -c id --scope 'image=InstanceOne | InstanceTwo'")
    assert shown.stdout.strip() == two.image
    assert shown.stderr.startswith("InstanceOne: No Image found")


def test_the_users_own_error_ends_at_once(run: Any) -> None:  # noqa: ANN401
    wrong = run("image list --no-such-option --scope 'image=InstanceOne | InstanceTwo'")
    assert wrong.returncode == 2
    assert wrong.stderr.count("unrecognized arguments") == 1


@pytest.mark.parametrize(
    ("scope", "place"), [("image=InstanceOne &", 13), ("image=(InstanceOne", 12)]
)
def test_a_bad_expression_has_a_caret_under_the_place(run: Any, scope: str, place: int) -> None:  # noqa: ANN401
    bad = run(f"image list --scope '{scope}'")
    assert bad.returncode == 2
    message, _, caret = bad.stderr.rstrip("\n").split("\n")
    assert message.startswith("openstack: error: --scope: expected ")
    assert caret.index("^") == place + 2


def test_a_failure_hides_no_other_result_and_takes_no_time(
    run: Any,  # noqa: ANN401
    one: Shell,
    hung: None,
) -> None:
    began = time.monotonic()
    listed = run("image list -f json --scope 'image=InstanceTwo & InstanceOne'")
    took = time.monotonic() - began
    assert listed.returncode == 1
    lost, found = json.loads(listed.stdout)
    assert (found["Instance"], found["ID"]) == ("InstanceOne", one.image)
    assert "instance InstanceTwo cannot be reached" in lost["Error"]
    assert took < 10  # The client's retries alone would take as long.


def test_a_server_lands_on_the_instance_that_works(run: Any, one: Shell, hung: None) -> None:  # noqa: ANN401
    scope = '{"compute": "InstanceTwo | InstanceOne"}'
    options = "--image cirros --flavor m1.nano --network private --wait -f value -c status"
    made = run(f"server create test-first {options} --scope '{scope}' --scope-timeout 120")
    assert made.stdout.strip() == "ACTIVE"
    assert "instance InstanceTwo cannot be reached" in made.stderr
    one.openstack("server delete test-first --wait")


def test_a_server_in_error_is_named_and_removed_on_request(run: Any, one: Shell) -> None:  # noqa: ANN401
    one.openstack("flavor create test-huge --ram 64 --disk 2000000 --vcpus 1")
    try:
        options = "--image cirros --flavor test-huge --network private --wait"
        scope = "--scope 'compute=InstanceOne | InstanceTwo' --scope-cleanup --scope-timeout 120"
        made = run(f"server create test-broken {options} {scope}")
        assert made.returncode != 0
        assert "is in ERROR and was removed: No valid host" in made.stderr
        assert one.json("server list --name test-broken") == []
    finally:
        one.openstack("flavor delete test-huge")
