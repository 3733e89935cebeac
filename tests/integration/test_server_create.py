"""Servers whose identity, compute and image come from any instance, asked for at any instance."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest

from openstackoid.proxy.log import LogLine
from openstackoid.scope import Scope
from tests.integration.conftest import Shell

INSTANCES = ("InstanceOne", "InstanceTwo")
SCOPES = [
    dict(zip(("identity", "compute", "image"), choice, strict=True))
    for choice in itertools.product(INSTANCES, repeat=3)
]


def _title(scope: dict[str, str]) -> str:
    return ",".join(f"{service}={instance[8:]}" for service, instance in scope.items())


def _served(lines: list[LogLine], method: str, path: str, status: int) -> set[str]:
    """The instances whose own service answered this request."""
    return {
        line.frontend
        for line in lines
        if line.backend.startswith("local_")
        and line.method == method
        and line.uri.endswith(path)
        and line.status == status
    }


@pytest.mark.parametrize("home", INSTANCES)
@pytest.mark.parametrize("scope", SCOPES, ids=_title)
def test_a_server_is_made_of_the_services_that_its_scope_names(
    shell: Callable[[str], Shell], home: str, scope: dict[str, str]
) -> None:
    here = shell(home)
    compute = shell(scope["compute"])
    other = shell(next(name for name in INSTANCES if name != scope["compute"]))
    image = shell(scope["image"]).image
    seen = {name: len(shell(name).proxy_log()) for name in INSTANCES}
    name = f"test-{home}-{'-'.join(scope.values())}"
    # A port is made by the compute's own account, and so in the compute's instance.
    network = "--network private" if scope["compute"] == home else "--nic none"
    options = f"--scope '{json.dumps(scope)}'"

    server = here.json(
        f"server create {name} {options} --image {image} --flavor m1.tiny {network} --wait"
    )
    try:
        assert server["status"] == "ACTIVE"
        assert server["image"] == f"cirros ({image})"
        rows = f"SELECT user_id, vm_state FROM nova.instances WHERE uuid = '{server['id']}'"
        assert compute.sql(rows) == [[shell(scope["identity"]).administrator, "active"]]
        assert other.sql(rows) == []
        if network == "--network private":
            [address] = server["addresses"]["private"]
            ports = f"SELECT ip_address FROM neutron.ipallocations WHERE ip_address = '{address}'"
            assert here.sql(ports) == [[address]]

        lines = [line for name in INSTANCES for line in shell(name).proxy_log(seen[name])]
        assert _served(lines, "POST", "/compute/v2.1/servers", 202) == {scope["compute"]}
        assert _served(lines, "GET", f"/images/{image}", 200) == {scope["image"]}
        resolved = Scope(
            dict.fromkeys(("compute", "identity", "image", "network", "placement"), home)
        ).merged(scope)
        logins = [
            (line.target, line.status)
            for line in lines
            if line.frontend == home
            and line.scope == resolved
            and line.method == "POST"
            and line.uri.endswith("/auth/tokens")
        ]
        assert logins == [(scope["identity"], 201)]
    finally:
        here.openstack(f"server delete {server['id']} {options} --wait")
    gone = f"SELECT deleted <> 0 FROM nova.instances WHERE uuid = '{server['id']}'"
    assert compute.sql(gone) == [["1"]]


def test_deleting_a_server_gives_its_address_back(one: Shell) -> None:
    server = one.json(
        "server create test-address --image cirros --flavor m1.nano --network private --wait"
    )
    [address] = server["addresses"]["private"]
    one.openstack(f"server delete {server['id']} --wait")
    assert one.json(f"port list --fixed-ip ip-address={address}") == []


@pytest.mark.parametrize("name", INSTANCES)
def test_an_instance_has_what_devstack_gives(shell: Callable[[str], Shell], name: str) -> None:
    here = shell(name)
    assert {row["Name"] for row in here.json("user list")} >= {"admin", "demo"}
    assert {row["Name"] for row in here.json("project list")} >= {"admin", "demo"}
    assert {row["Name"] for row in here.json("flavor list")} == {"m1.nano", "m1.tiny", "m1.small"}
    [network] = here.json("network list")
    assert network["Name"] == "private"
    assert network["Subnets"]
