"""Every service type that the service types authority has can be in a scope."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from os_service_types import ServiceTypes

from openstackoid.proxy.config import Proxy
from openstackoid.proxy.endpoints import Wanted, describe, read
from openstackoid.scope import TAG_MARK

from .harness import Client, EchoServices, RunningProxy, free_port, free_ports

ONE, TWO = "InstanceOne", "InstanceTwo"
HOSTS = {ONE: "127.0.141.1", TWO: "127.0.142.1"}
#: Where the services are: at another address, they cannot take a port that a proxy is to have.
SERVICES = "127.0.143.1"
TYPES = sorted(ServiceTypes().all_types_by_service_type)
OTHERS = [kind for kind in TYPES if kind != "identity"]


def made_from_lists(directory: Path, echo: EchoServices) -> list[Proxy]:
    """One has no service but identity, and Two has all of them, on ports of their own."""
    port, *ports = free_ports(HOSTS[TWO], 1 + len(TYPES))
    binds = {ONE: f"{HOSTS[ONE]}:{free_port(HOSTS[ONE])}", TWO: f"{HOSTS[TWO]}:{port}"}
    endpoints = {
        ONE: {"identity": echo.add("identity", SERVICES) + "/identity"},
        TWO: {kind: f"http://{HOSTS[TWO]}:{n}" for kind, n in zip(TYPES, ports, strict=True)},
    }
    rows = [
        {"Region": name, "Service Type": kind, "Interface": "public", "URL": url}
        for name, urls in endpoints.items()
        for kind, url in urls.items()
    ]
    proxies = []
    for name, other in ((ONE, TWO), (TWO, ONE)):
        wanted = Wanted(
            instance=name,
            directory=directory / name,
            bind=binds[name],
            peers={other: binds[other]},
            issuers=(other,),
            backends={kind: echo.add(kind, SERVICES) for kind in TYPES} if name == TWO else {},
            sealed=False,
        )
        proxy, unused = describe(read(json.dumps(rows), "lists"), wanted)
        assert unused == []
        proxies.append(proxy)
    return proxies


@pytest.fixture(scope="module")
def one() -> Iterator[tuple[Proxy, Client]]:
    """The running proxy of One, and a client of it."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="proxy")))
        proxies = made_from_lists(directory, stack.enter_context(EchoServices()))
        running = [stack.enter_context(RunningProxy(proxy)) for proxy in proxies]
        running[0].wait_for_peer(TWO, "UP")
        client = Client(proxies[0].bind)
        stack.callback(client.close)
        yield proxies[0], client


def prefix_of(proxy: Proxy, kind: str) -> str:
    (prefix,) = [service.prefix for service in proxy.services if service.type == kind]
    return prefix


@pytest.mark.parametrize("kind", OTHERS)
def test_a_scope_leads_to_a_service_that_only_another_instance_has(
    one: tuple[Proxy, Client], kind: str
) -> None:
    proxy, client = one
    prefix = prefix_of(proxy, kind)
    scope = {**dict.fromkeys(TYPES, ONE), kind: TWO}
    tag = json.dumps(scope, separators=(",", ":"))
    for headers in (
        (("X-Auth-Token", f"t{TAG_MARK}{tag}"),),
        (("X-Auth-Token", "t"), ("X-Scope", json.dumps({kind: TWO}))),
    ):
        answer = client.send("GET", f"{prefix}/v1/things", headers)
        assert answer.status == 200, answer.body
        served = answer.json()
        assert (served["service"], served["path"]) == (kind, "/v1/things")
        assert ["x-auth-token", f"t{TAG_MARK}{tag}"] in served["headers"]


@pytest.mark.parametrize("kind", OTHERS)
def test_without_a_scope_the_instance_says_that_it_has_no_such_service(
    one: tuple[Proxy, Client], kind: str
) -> None:
    proxy, client = one
    prefix = prefix_of(proxy, kind)
    answer = client.send("GET", f"{prefix}/v1/things", (("X-Auth-Token", "t"),))
    assert answer.status == 404
    assert answer.json()["error"]["message"] == (
        f"InstanceOne has no {kind} service: name another instance for it in the scope"
    )
