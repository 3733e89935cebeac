"""Servers with identity, compute and image from any instance, requested at any instance."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pytest

from openstackoid.proxy.log import LogLine
from openstackoid.scope import Scope
from tests.conftest import RunningLab
from tests.integration.conftest import Shell
from tests.integration.guests import MARKER

INSTANCES = ("InstanceOne", "InstanceTwo")
SCOPED = ("identity", "compute", "image")
TYPES = ("compute", "identity", "image", "network", "placement")


@dataclass(frozen=True)
class Request:
    """A server that is requested at *home* with a scope over :data:`SCOPED`."""

    home: str
    identity: str
    compute: str
    image: str

    def __str__(self) -> str:
        chosen = "-".join(f"{service}-{getattr(self, service)[8:]}" for service in SCOPED)
        return f"at-{self.home[8:]}-{chosen}"

    @property
    def scope(self) -> Scope:
        return Scope({service: getattr(self, service) for service in SCOPED})

    @property
    def resolved(self) -> Scope:
        """The scope as the proxies resolve it; no two requests have the same."""
        return Scope(dict.fromkeys(TYPES, self.home)).merged(self.scope)

    @property
    def has_port(self) -> bool:
        """The compute makes a port with its own account, and so in its own instance."""
        return self.compute == self.home


@dataclass(frozen=True)
class Created:
    """A server as the client saw it, and all requests that the proxies served for its scope.

    *console* is what a real guest has said until it could tell whose image it is.
    """

    server: dict[str, Any]
    lines: list[LogLine]
    console: str

    def served(self, method: str, path: str, status: int) -> set[str]:
        """The instances whose own service answered this request."""
        return {
            line.frontend
            for line in self.lines
            if line.backend.startswith(("local_", "foreign_"))
            and (line.method, line.status) == (method, status)
            and line.uri.endswith(path)
        }


REQUESTS = [Request(*choice) for choice in itertools.product(INSTANCES, repeat=4)]


@pytest.fixture(scope="module")
def created(
    request: pytest.FixtureRequest, lab: RunningLab, shell: Callable[[str], Shell]
) -> Iterator[Callable[[Request], Created]]:
    """The servers of the chosen tests, made in parallel.

    The proxies' logs name the scope of each request.
    """
    calls = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    chosen = [call.params["request_"] for call in calls if "request_" in call.params]

    def create(request: Request) -> dict[str, Any]:
        network = "--network private" if request.has_port else "--nic none"
        image = shell(request.image).image
        server: dict[str, Any] = shell(request.home).json(
            f"server create test-{request} --scope '{request.scope.to_json()}' --image {image}"
            f" --flavor m1.nano {network} --wait"
        )
        return server

    def console(request: Request) -> str:
        jobs[request].result()
        line = f"console log show test-{request} --scope '{request.scope.to_json()}'"
        deadline = time.monotonic() + 60
        while True:
            said = shell(request.home).openstack(line)
            if MARKER in said or time.monotonic() > deadline:
                return said

    def delete(request: Request) -> None:
        scope = request.scope.to_json()
        shell(request.home).openstack(f"server delete test-{request} --scope '{scope}' --wait")

    with ThreadPoolExecutor(4) as pool:
        seen = {name: len(shell(name).proxy_log()) for name in INSTANCES}
        jobs: dict[Request, Future[dict[str, Any]]] = {
            request: pool.submit(create, request) for request in chosen
        }
        wait(jobs.values())
        lines = [line for name in INSTANCES for line in shell(name).proxy_log(seen[name])]
        # Only now: these logins are not the servers'.
        consoles = {
            request: pool.submit(console, request) for request in chosen if lab.config.has_guests
        }

        def result(request: Request) -> Created:
            own = [line for line in lines if line.scope == request.resolved]
            said = consoles[request].result() if consoles else ""
            return Created(jobs[request].result(), own, said)

        yield result
        for done in [pool.submit(delete, request) for request in chosen]:
            done.result()
    alive = "SELECT display_name FROM {}.instances WHERE deleted = 0"
    assert [shell(name).sql(alive.format(shell(name).cell)) for name in INSTANCES] == [[], []]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_server_is_made_of_the_services_that_its_scope_names(
    lab: RunningLab,
    shell: Callable[[str], Shell],
    created: Callable[[Request], Created],
    request_: Request,
) -> None:
    found = created(request_)
    server = found.server
    image = shell(request_.image).image
    assert server["status"] == "ACTIVE"
    assert server["image"] == f"cirros ({image})"

    servers = f"{shell(request_.compute).cell}.instances"
    rows = f"SELECT user_id, vm_state, image_ref FROM {servers} WHERE uuid = '{server['id']}'"
    user = shell(request_.identity).user(shell(request_.home))
    [elsewhere] = set(INSTANCES) - {request_.compute}
    assert shell(request_.compute).sql(rows) == [[user, "active", image]]
    assert shell(elsewhere).sql(rows) == []
    if request_.has_port:
        [address] = server["addresses"]["private"]
        ports = f"SELECT ip_address FROM neutron.ipallocations WHERE ip_address = '{address}'"
        assert shell(request_.home).sql(ports) == [[address]]

    assert found.served("POST", "/compute/v2.1/servers", 202) == {request_.compute}
    assert found.served("GET", f"/images/{image}", 200) == {request_.image}
    logins = [
        (line.frontend, line.target, line.status)
        for line in found.lines
        if line.method == "POST" and line.uri.endswith("/auth/tokens") and line.service
    ]
    assert logins == [(request_.home, request_.identity, 201)]
    if lab.config.has_guests:
        assert f"{MARKER} {request_.image}\n" in found.console.replace("\r", "")


def test_deleting_a_server_gives_its_address_back(one: Shell) -> None:
    server = one.json(
        "server create test-address --image cirros --flavor m1.nano --network private --wait"
    )
    [address] = server["addresses"]["private"]
    one.openstack(f"server delete {server['id']} --wait")
    assert one.json(f"port list --fixed-ip ip-address={address}") == []


@pytest.mark.parametrize("name", INSTANCES)
def test_an_instance_has_what_devstack_gives(
    lab: RunningLab, shell: Callable[[str], Shell], name: str
) -> None:
    here = shell(name)
    assert {row["Name"] for row in here.json("user list")} >= {"admin", "demo"}
    assert {row["Name"] for row in here.json("project list")} >= {"admin", "demo"}
    assert {row["Name"] for row in here.json("flavor list")} >= {"m1.nano", "m1.tiny", "m1.small"}
    networks = {row["Name"]: row["Subnets"] for row in here.json("network list")}
    assert set(networks) - {"public"} == {"private"}
    assert all(networks.values())
