"""Two real, unmodified DevStacks with vanilla services, from creation to removal by the lab.

The tests follow the life of one lab, in order.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from collections.abc import Callable

import pytest

from tests.devstack.conftest import VARIABLE
from tests.machines.box import IMAGE
from tests.machines.conftest import Clone

if not os.environ.get(VARIABLE):
    pytest.skip(
        f"set {VARIABLE} to a directory of bare mirrors (openstack/nova.git and so on) to make "
        "two real DevStacks in 40 minutes",
        allow_module_level=True,
    )

NAMES = ("InstanceOne", "InstanceTwo")
ADDRESS = {"InstanceOne": "192.168.56.11", "InstanceTwo": "192.168.56.12"}
SERVICES = ("glance", "keystone", "neutron", "nova", "placement")
#: Tests that the local lab passes, too.
SAME_TESTS = ("tests/integration/test_transcript.py", "tests/integration/test_server_create.py")
DEVSTACK = "/opt/stack/devstack"
LOG = "/opt/stack/logs/stack.sh.log"
SCOPE = {"image": "InstanceTwo"}
#: What tokens of InstanceTwo may do in InstanceOne: no updates, and nothing of administrators.
POLICY = {"methods": ["DELETE", "GET", "HEAD", "POST", "PUT"]}
FORGET_PEERS = """
import json, pathlib
path = pathlib.Path("/etc/openstackoid/proxy.json")
nobody = {"peers": [], "issuers": [], "policies": []}
path.write_text(json.dumps({**json.loads(path.read_text()), **nobody}))
"""


@pytest.fixture(scope="module")
def lab(git_base: str, clone: Callable[[], Clone]) -> Clone:
    """Two machines with DevStack, up."""
    one = clone()
    one.describe(
        stack="devstack",
        sealed=True,
        tls=True,
        trust={"InstanceOne": {"InstanceTwo": POLICY}},
        vagrant={"box": IMAGE, "cpus": 2, "memory": 9000, "provider": "docker"},
        devstack={
            "repository": f"{git_base}/openstack/devstack.git",
            "git_base": git_base,
            "branch": "master",
            "settings": {
                "VIRT_DRIVER": "fake",
                # Containers cannot load kernel modules.
                "OVS_DATAPATH_TYPE": "netdev",
                "ENABLE_KSM": "False",
                # Two DevStacks on few cores.
                "API_WORKERS": 1,
                "GIT_DEPTH": 400,
                "OPENSTACKOID_REGIONS": "InstanceOne InstanceTwo mixed:image=InstanceTwo",
            },
        },
    )
    print(one.setup_env("up", "--no-attach"))
    return one


def ssh(lab: Clone, name: str, command: str) -> str:
    """The output of *command* in the instance *name*, which has to succeed."""
    return lab.setup_env("ssh", name, "--", *shlex.split(command))


def found(lab: Clone, name: str, command: str) -> str:
    """The output of *command* in the instance *name*, even if it fails."""
    return lab.run("./setup-env.py", "ssh", name, "--", *command.split(), check=False).stdout


def refusal(lab: Clone, name: str, command: str) -> str:
    """The errors of *command* in the instance *name*, which has to fail."""
    done = lab.run("./setup-env.py", "ssh", name, "--", *shlex.split(command), check=False)
    assert done.returncode != 0
    return done.stderr


def image_id(lab: Clone, name: str) -> str:
    return ssh(lab, name, "openstack image show cirros -f value -c id").strip()


def create(lab: Clone) -> tuple[str, str]:
    """State and image of a server that is made as in the README, and deleted again."""
    image = image_id(lab, "InstanceTwo")
    said = ssh(
        lab,
        "InstanceOne",
        f"openstack server create my-vm --scope '{json.dumps(SCOPE)}' --image {image} "
        "--flavor m1.tiny --network private --wait -f json",
    )
    ssh(lab, "InstanceOne", "openstack server delete --wait my-vm")
    server = json.loads(said)
    return server["status"], server["image"]


def last_run(lab: Clone, name: str) -> str:
    """The log of stack.sh's last run; each run has another name."""
    return ssh(lab, name, f"readlink {LOG}").strip()


def problems(lab: Clone) -> list[str]:
    """The services of DevStack that do not run, and the unreachable peers."""
    status = json.loads(lab.setup_env("status", "--json"))
    assert [one["name"] for one in status["instances"] if one["up"]] == [*NAMES]
    lacking = []
    for one in status["instances"]:
        states = {service["name"]: service["state"] for service in one["services"]}
        assert {"keystone", "n-api", "n-cpu-1", "openstackoid-proxy"} <= states.keys()
        lacking += [
            f"{one['name']}: {name}" for name, state in states.items() if state != "running"
        ]
        lacking += [
            f"{one['name']}: peer {name}" for name, at in one["peers"].items() if at != "UP"
        ]
    return lacking


def test_everything_runs(lab: Clone) -> None:
    assert problems(lab) == []
    for name in NAMES:
        assert "This is your host IP address" in lab.setup_env("logs", name, "stack.sh")
        assert "/identity/v3" in lab.setup_env("logs", name, "openstackoid-proxy")


def test_a_second_up_does_not_stack_again(lab: Clone) -> None:
    before = [last_run(lab, name) for name in NAMES]
    lab.setup_env("up", "--no-attach")
    assert [last_run(lab, name) for name in NAMES] == before


def test_devstacks_pass_what_the_embedded_lab_passes(lab: Clone) -> None:
    said = lab.setup_env("test", "-q", *SAME_TESTS)
    print(said)
    assert re.fullmatch(r"\d+ passed in .*", said.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_no_service_has_a_changed_line(lab: Clone, name: str) -> None:
    for service in SERVICES:
        command = f"git -C /opt/stack/{service} status --porcelain --untracked-files=no"
        assert ssh(lab, name, command) == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_catalog_knows_the_proxy_only(lab: Clone, name: str) -> None:
    urls = ssh(lab, name, "openstack endpoint list -f value -c URL").split()
    assert len(urls) >= len(SERVICES)
    assert [url for url in urls if not url.startswith(f"http://{ADDRESS[name]}:8888/")] == []


@pytest.mark.parametrize("region", ["InstanceOne", "InstanceTwo", "mixed"])
def test_a_region_carries_its_scope(lab: Clone, region: str) -> None:
    image = image_id(lab, region if region in NAMES else "InstanceTwo")
    listing = f"openstack --os-region-name {region} image list -f value -c ID"
    assert ssh(lab, "InstanceOne", listing).split() == [image]


@pytest.mark.parametrize("name", NAMES)
def test_a_proxy_seals_and_speaks_tls(lab: Clone, name: str) -> None:
    (other,) = {*NAMES} - {name}
    described = json.loads(ssh(lab, name, "cat /etc/openstackoid/proxy.json"))
    address = f"{ADDRESS[other]}:8889"
    assert described["peers"] == [{"name": other, "address": address, "sealed": True, "tls": True}]
    tls = described["tls"]
    secrets = ["/etc/openstackoid/sealing.keys", tls["certificate"], tls["ca"]]
    assert ssh(lab, name, f"stat --format %a {' '.join(secrets)}").split() == ["600"] * 3
    ssh(lab, other, f"openstack image list --scope image={name}")
    log = lab.setup_env("logs", name, "openstackoid-proxy")
    assert re.search(rf"{name}:peers~ \S+ \S+ 200 .*/v2/images", log)


def test_a_policy_holds_for_the_tokens_of_the_other_instance(lab: Clone) -> None:
    said = "the policy of InstanceOne for tokens of InstanceTwo allows methods: DELETE, GET"
    scope = "--scope compute=InstanceOne,image=InstanceOne,network=InstanceOne"
    update = f"openstack image set --property test=1 cirros {scope}"
    assert said in refusal(lab, "InstanceTwo", update)
    assert "403" in refusal(lab, "InstanceTwo", f"openstack compute service list {scope}")


@pytest.mark.parametrize("service", ["identity", "image", "compute", "networking", "placement"])
@pytest.mark.parametrize("scope", [None, SCOPE], ids=["unscoped", "scoped"])
def test_links_lead_back_to_the_proxy(
    lab: Clone, service: str, scope: dict[str, str] | None
) -> None:
    frontend = f"http://{ADDRESS['InstanceOne']}:8888"
    if scope:
        text = json.dumps(scope, separators=(",", ":")).encode()
        frontend += "/scope/" + base64.urlsafe_b64encode(text).decode().rstrip("=")
    said = ssh(lab, "InstanceOne", f"curl --silent {frontend}/{service}/")
    links = re.findall(r'"href": *"(http[^"]+)"', said)
    assert service == "placement" or links
    assert [link for link in links if not link.startswith(f"{frontend}/{service}")] == []


def test_machines_that_were_halted_take_servers_at_once(lab: Clone) -> None:
    before = [last_run(lab, name) for name in NAMES]
    lab.setup_env("halt")
    lab.setup_env("up", "--no-attach")
    assert [last_run(lab, name) for name in NAMES] == before
    assert problems(lab) == []
    assert create(lab) == ("ACTIVE", f"cirros ({image_id(lab, 'InstanceTwo')})")


def test_a_proxy_meets_a_new_peer_without_stack_sh(lab: Clone) -> None:
    before = last_run(lab, "InstanceOne")
    process = "systemctl show --property=MainPID devstack@openstackoid-proxy"
    proxy = ssh(lab, "InstanceOne", process)
    lab.setup_env("ssh", "InstanceOne", "--", "python3", "-c", FORGET_PEERS)
    command = "/opt/stack/data/venv/bin/openstackoid-proxy check /etc/openstackoid/proxy.json"
    ssh(lab, "InstanceOne", f"env PATH=/usr/sbin:/usr/bin {command}")
    ssh(lab, "InstanceOne", "sudo systemctl reload devstack@openstackoid-proxy")
    assert json.loads(lab.setup_env("status", "--json"))["instances"][0]["peers"] == {}

    lab.setup_env("up", "--no-attach")
    assert problems(lab) == []
    assert last_run(lab, "InstanceOne") == before
    assert ssh(lab, "InstanceOne", process) == proxy
    assert create(lab)[0] == "ACTIVE"


def test_stack_sh_runs_again_over_itself_and_after_unstack_sh(lab: Clone) -> None:
    before = [last_run(lab, name) for name in NAMES]
    ssh(lab, "InstanceTwo", f"env -C {DEVSTACK} ./unstack.sh")
    assert found(lab, "InstanceTwo", "pgrep -a -x haproxy") == ""
    for name in NAMES:
        ssh(lab, name, "rm instance/stacked")
    lab.setup_env("up", "--no-attach")
    assert not {last_run(lab, name) for name in NAMES} & {*before}
    assert problems(lab) == []
    assert create(lab) == ("ACTIVE", f"cirros ({image_id(lab, 'InstanceTwo')})")


def test_clean_sh_leaves_nothing_of_ours(lab: Clone) -> None:
    ssh(lab, "InstanceTwo", f"env -C {DEVSTACK} ./clean.sh")
    ours = ["/etc/openstackoid", "/etc/apache2/conf-enabled/openstackoid.conf"]
    units = "/etc/systemd/system/devstack@openstackoid-proxy.service"
    assert found(lab, "InstanceTwo", f"find {' '.join(ours)} {units}") == ""
    assert found(lab, "InstanceTwo", "pgrep -a -x haproxy") == ""


def test_destroy_leaves_nothing(lab: Clone) -> None:
    lab.setup_env("destroy")
    assert lab.run("docker", "ps", "--all", "--quiet").stdout == ""
    assert not (lab.root / ".lab").exists()
    assert not (lab.root / ".vagrant").exists()
