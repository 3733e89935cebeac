"""Real machines from the real Vagrant: the same lab and the same tests, over Vagrant's ssh."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.machines.conftest import Clone

#: Tests that the local lab passes, too.
SAME_TESTS = (
    "tests/infra",
    "tests/integration/test_server_create.py",
    "tests/integration/test_transcript.py",
    # Of the servers, those that concern two machines: four of sixteen.
    *("-k", "not identity-One and not compute-Two"),
)
#: Commands that list a hypervisor's machines, networks and volumes; what there is without a lab.
LISTS = {
    "docker": (
        ("docker", "ps", "--all", "--format={{.Names}}"),
        ("docker", "network", "ls", "--format={{.Name}}"),
        ("docker", "volume", "ls", "--format={{.Name}}"),
    ),
    "libvirt": (
        ("virsh", "list", "--all", "--name"),
        ("virsh", "net-list", "--all", "--name"),
        # Vagrant keeps the box; its volume has a name of its own.
        ("sh", "-c", "virsh vol-list default | grep -o 'lab_[^ ]*' | sort -u"),
    ),
}
NOTHING: dict[str, list[set[str]]] = {
    "docker": [set(), {"bridge", "host", "none"}, set()],
    "libvirt": [set(), set(), set()],
}
CREATE = "--image cirros --flavor m1.nano --network private --wait -f value -c status"


@pytest.fixture(scope="module")
def machines(clone: Callable[[], Clone]) -> Clone:
    """Two machines with the wheels stack, up."""
    one = clone()
    one.setup_env("up", "--no-attach")
    return one


def resources(lab: Clone) -> list[set[str]]:
    """The machines, networks and volumes that the sandbox's hypervisor has."""
    return [set(lab.run(*command).stdout.split()) for command in LISTS[lab.sandbox.hypervisor]]


def create(lab: Clone, home: str, image: str) -> str:
    """The status of a server made at *home* from an image of another instance; it is deleted."""
    scope = f'{{"image": "{image}"}}'
    command = ["openstack", "server", "create", f"of-{image}", "--scope", scope, *CREATE.split()]
    status = lab.setup_env("ssh", home, "--", *command)
    lab.setup_env("ssh", home, "--", "openstack", "server", "delete", "--wait", f"of-{image}")
    return status.strip()


def up_names(lab: Clone) -> list[str]:
    """The instances that are up; all their services must run, and they must see each other."""
    status = json.loads(lab.setup_env("status", "--json"))
    assert (status["provider"], status["stack"]) == ("vagrant", "wheels")
    running = [one for one in status["instances"] if one["up"]]
    names = [one["name"] for one in running]
    for one in running:
        assert {service["state"] for service in one["services"]} == {"running"}
        assert {name for name, state in one["peers"].items() if state == "UP"} == {*names} - {
            one["name"]
        }
    return names


def test_instances_are_machines_of_their_own(machines: Clone) -> None:
    assert up_names(machines) == ["InstanceOne", "InstanceTwo"]
    kernels = {}
    for name in ("InstanceOne", "InstanceTwo"):
        assert machines.setup_env("ssh", name, "--", "hostname") == f"{name}\n"
        assert machines.setup_env("ssh", name, "--", "cat", "/proc/1/comm") == "systemd\n"
        kernels[name] = machines.setup_env("ssh", name, "--", "cat", "/etc/machine-id")
    host = Path("/etc/machine-id").read_text() if Path("/etc/machine-id").exists() else ""
    assert len({*kernels.values(), host}) == 3


def test_machines_pass_what_the_embedded_lab_passes(machines: Clone) -> None:
    said = machines.setup_env("test", "-q", *SAME_TESTS)
    print(said)
    summary = said.splitlines()[-1].strip("= ")
    assert re.fullmatch(r"\d+ passed, 12 deselected in .*", summary)


def test_plain_vagrant_commands_work(machines: Clone) -> None:
    status = machines.run("vagrant", "status").stdout
    assert re.search(rf"InstanceOne +running \({machines.sandbox.hypervisor}\)", status)
    assert machines.run("vagrant", "ssh", "InstanceTwo", "-c", "hostname").stdout == "InstanceTwo\n"
    machines.run("vagrant", "up", "InstanceOne")


def test_panes_are_in_the_machines(machines: Clone) -> None:
    machines.setup_env("up", "--no-attach")
    tmux = ["tmux", "-L", machines.socket]
    listing = machines.run(*tmux, "list-panes", "-t", "openstackoid", "-F", "#{@instance} #D")
    panes = dict(line.split() for line in listing.stdout.splitlines())
    assert list(panes) == ["InstanceOne", "InstanceTwo"]
    for name, pane in panes.items():
        machines.run(*tmux, "send-keys", "-t", pane, "clear; hostname; whoami", "Enter")
        shown, deadline = "", time.monotonic() + 20
        while f"{name}\nstack\nstack@{name}:~$" not in shown:
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)
            shown = machines.run(*tmux, "capture-pane", "-p", "-t", pane).stdout


def test_links_and_services_of_machines_break_and_heal(machines: Clone) -> None:
    elsewhere = "ssh InstanceOne -- openstack image list --scope image=InstanceTwo -f value -c Name"
    machines.setup_env("net", "InstanceOne", "InstanceTwo", "--cut")
    assert "instance InstanceTwo cannot be reached" in machines.error(*elsewhere.split())
    [there, _] = json.loads(machines.setup_env("net", "--json"))
    assert (there["fault"], there["state"]) == ("cut", "DOWN")
    machines.setup_env("net", "InstanceOne", "InstanceTwo", "--delay", "300ms")
    began = time.monotonic()
    assert machines.setup_env(*elsewhere.split()) == "cirros\n"
    assert time.monotonic() - began > 0.3
    machines.setup_env("kill", "InstanceTwo/glance-api")
    assert "the image service of InstanceTwo" in machines.error(*elsewhere.split())
    machines.setup_env("up", "--no-attach")
    assert machines.setup_env(*elsewhere.split()) == "cirros\n"
    assert {one["fault"] for one in json.loads(machines.setup_env("net", "--json"))} == {""}


@pytest.fixture
def requests_answered(machines: Clone) -> Iterator[Callable[[], list[str]]]:
    """Polls InstanceOne's proxy; returns a function that stops, and returns all statuses."""
    loop = (
        "while [ ! -e .lab/enough ]; do"
        " curl --silent --output /dev/null --write-out '%{http_code}\n' --max-time 20"
        " http://192.168.56.11:8888/identity/v3; sleep 0.2; done"
    )
    asking = subprocess.Popen(
        machines.sandbox.command(["bash", "-c", loop], machines.root),
        stdout=subprocess.PIPE,
        text=True,
    )
    answers: list[str] = []

    def read() -> None:
        assert asking.stdout
        answers.extend(asking.stdout.read().split())

    reader = threading.Thread(target=read)
    reader.start()

    def end() -> list[str]:
        (machines.root / ".lab/enough").touch()
        reader.join()
        asking.wait()
        return answers

    yield end
    end()


def test_an_instance_that_is_added_to_lab_yaml_joins_the_running_lab(
    machines: Clone, requests_answered: Callable[[], list[str]]
) -> None:
    described = yaml.safe_load((machines.root / "lab.yaml").read_text())
    machines.describe(instances=[*described["instances"], {"name": "InstanceThree"}])
    machines.setup_env("up", "--no-attach")
    assert up_names(machines) == ["InstanceOne", "InstanceTwo", "InstanceThree"]
    assert create(machines, "InstanceOne", "InstanceThree") == "ACTIVE"
    assert create(machines, "InstanceThree", "InstanceTwo") == "ACTIVE"
    answers = requests_answered()
    assert len(answers) > 50
    assert set(answers) == {"200"}


def test_machines_that_were_halted_come_back_with_their_data(machines: Clone) -> None:
    """InstanceThree is out of lab.yaml by then, and is not started."""
    images = machines.setup_env("ssh", "InstanceTwo", "--", "openstack", "image", "list")
    machines.setup_env("halt")
    assert up_names(machines) == []
    assert "running" not in machines.run("vagrant", "status").stdout
    described = yaml.safe_load((machines.root / "lab.yaml").read_text())
    machines.describe(instances=described["instances"][:2])
    said = machines.setup_env("up", "--no-attach")
    assert "`vagrant destroy InstanceThree` removes it" in said
    assert up_names(machines) == ["InstanceOne", "InstanceTwo"]
    status = machines.run("vagrant", "status").stdout
    assert re.search(r"InstanceThree +(stopped \(docker\)|shutoff \(libvirt\))", status)
    again = machines.setup_env("ssh", "InstanceTwo", "--", "openstack", "image", "list")
    assert again == images
    assert create(machines, "InstanceOne", "InstanceTwo") == "ACTIVE"


def test_destroy_leaves_no_machine_network_or_file(machines: Clone) -> None:
    before = resources(machines)
    machines.setup_env("destroy")
    after = resources(machines)
    print(*before, *after, sep="\n")
    assert after == NOTHING[machines.sandbox.hypervisor]
    ignored = machines.run("git", "status", "--short", "--ignored").stdout.splitlines()
    names = {line.split()[1] for line in ignored}
    assert not names & {".lab/", ".vagrant/"}


@pytest.mark.usefixtures("docker_only")
def test_vagrants_own_words_reach_the_user(clone: Callable[[], Clone]) -> None:
    lab = clone()
    lab.describe(vagrant={"box": "no such image", "cpus": 1, "memory": 512, "provider": "docker"})
    line = lab.error("up", "--no-attach")
    assert line.startswith("error: vagrant up: ")
    assert "invalid reference format" in line
