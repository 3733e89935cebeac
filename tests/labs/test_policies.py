"""What the tokens of InstanceThree may do elsewhere: see ``TRUST``."""

from __future__ import annotations

import json
import re
import subprocess

from tests.conftest import RunningLab

THREE = "InstanceThree"


def run(three: RunningLab, command: str) -> subprocess.CompletedProcess[str]:
    """Run an ``openstack`` command in InstanceThree, whose administrator its shell has."""
    return three.ssh(THREE, "openstack", *command.split(), check=False)


def test_a_policy_lets_in_what_it_names(three: RunningLab) -> None:
    listed = run(three, "image list -f json --scope image=InstanceTwo")
    assert [image["Name"] for image in json.loads(listed.stdout)] == ["cirros"]


def test_a_policy_refuses_other_methods_and_services_and_says_so(three: RunningLab) -> None:
    said = "the policy of InstanceTwo for tokens of InstanceThree allows"
    created = run(three, "image create test --scope image=InstanceTwo")
    assert created.returncode != 0
    assert f"{said} methods: GET, HEAD" in created.stderr
    listed = run(three, "server list --scope compute=InstanceTwo")
    assert listed.returncode != 0
    assert f"{said} services: image" in listed.stderr


def test_an_administrator_is_one_at_home_only(three: RunningLab) -> None:
    assert run(three, "compute service list").returncode == 0
    scope = "--scope compute=InstanceOne,network=InstanceOne"
    assert run(three, f"server list {scope}").returncode == 0
    for command in ("compute service list", "server list --all-projects"):
        refused = run(three, f"{command} {scope}")
        assert refused.returncode != 0
        assert "403" in refused.stderr
    private = run(three, "image unset --property x cirros --scope image=InstanceOne")
    assert private.returncode != 0


def test_the_audit_says_who_did_what(three: RunningLab) -> None:
    run(three, "image list --scope image=InstanceTwo")
    run(three, "image create audited --scope image=InstanceTwo")
    log = three.setup_env("logs", "InstanceTwo", "haproxy").stdout
    audit = three.ssh("InstanceTwo", "openstackoid-proxy", "audit", stdin=log).stdout
    requests = [json.loads(line) for line in audit.splitlines()]
    last = {(one["method"], one["path"]): one for one in requests}
    listed, refused = last["GET", "/image/v2/images"], last["POST", "/image/v2/images"]
    assert (listed["issuer"], listed["decision"], listed["status"]) == (THREE, "passed", 200)
    assert re.fullmatch(r"admin \([0-9a-f]{32}\)", listed["user"])
    assert re.fullmatch(r"admin \([0-9a-f]{32}\)", listed["project"])
    # Nobody has asked about this token yet.
    assert (refused["user"], refused["decision"], refused["status"]) == (None, "refused", 403)
    assert re.fullmatch(r"req-[0-9a-f-]{36}", listed["request_id"])


def test_an_administrator_with_the_word_of_the_instance_is_one(three: RunningLab) -> None:
    command = "openstack compute service list --scope compute=InstanceTwo"
    assert three.ssh("InstanceOne", *command.split()).returncode == 0
