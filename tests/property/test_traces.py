"""Traces: which request caused which, by what the proxies note."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from openstackoid.proxy.config import Peer, Proxy, Service
from openstackoid.proxy.log import LogLine, parse_log_line
from openstackoid.proxy.trace import Request, attribute, with_trace
from openstackoid.scope import Scope, scoped_auth_url

from .conftest import PREFIXES
from .harness import Answer, Client, EchoServices, RunningProxy, free_port, wait_until

ONE, TWO = "InstanceOne", "InstanceTwo"
HOSTS = {ONE: "127.0.141.1", TWO: "127.0.142.1"}
ID = "X-OpenStack-Request-ID"


class World:
    """Two proxies that trace; the services echo what they get."""

    def __init__(self, stack: ExitStack) -> None:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="traces")))
        echo = stack.enter_context(EchoServices())
        binds = {name: f"{host}:{free_port(host)}" for name, host in HOSTS.items()}
        self.proxies = {}
        for name, host in HOSTS.items():
            (other,) = HOSTS.keys() - {name}
            services = tuple(Service(k, p, echo.add(k, host)) for k, p in PREFIXES.items())
            peers = (Peer(other, binds[other], sealed=name == ONE),)
            proxy = Proxy(
                name, binds[name], services, peers, (other,), directory=base / name, traces=True
            )
            self.proxies[name] = stack.enter_context(RunningProxy(proxy))
        for name, running in self.proxies.items():
            (other,) = HOSTS.keys() - {name}
            running.wait_for_peer(other, "UP")

    def send(
        self,
        at: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        passes: int = 1,
    ) -> Answer:
        """Send a request, and wait until the proxies that it passes have logged it."""
        client = Client(self.proxies[at].proxy.bind)
        lines = len(self.lines())
        answer = client.send(method, path, tuple((headers or {}).items()))
        client.close()
        wait_until("a line in a log", lambda: len(self.lines()) >= lines + passes)
        return answer

    def lines(self) -> list[tuple[str, LogLine]]:
        return [(name, one) for name, p in self.proxies.items() for one in p.log_lines()]

    def log_in(self, trace: str, scope: Scope | None = None) -> str:
        """Log in within a trace; the token is FRESH, with the tag of the scope."""
        url = with_trace("http://a/identity/v3", trace)
        path = (scoped_auth_url(url, scope) if scope else url).removeprefix("http://a")
        answer = self.send(ONE, "POST", f"{path}/auth/tokens")
        assert answer.status == 201
        return answer.headers["x-subject-token"]

    def roots(self, trace: str) -> list[Request]:
        return attribute(self.lines(), trace)[0]


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def given_to_service(answer: Answer) -> str:
    """The id that a service got, which it sends with the requests that it makes."""
    return str(dict(answer.json()["headers"])[ID.lower()])


def shown(request: Request) -> tuple[str, str, list[str]]:
    return request.line.method, request.path, request.ways


def test_a_command_is_its_login_and_what_has_its_token(world: World) -> None:
    token = world.log_in("t1")
    world.send(ONE, "GET", "/compute/v2.1/servers?limit=1", {"X-Auth-Token": token})
    world.send(ONE, "GET", "/compute/v2.1/flavors", {"X-Auth-Token": "another"})
    assert [shown(one) for one in world.roots("t1")] == [
        ("POST", "/identity/v3/auth/tokens", [ONE]),
        ("GET", "/compute/v2.1/servers", [ONE]),
    ]
    assert world.roots("t2") == []


def test_a_request_of_a_service_belongs_to_the_one_that_caused_it(world: World) -> None:
    scope = Scope({**dict.fromkeys(PREFIXES, ONE), "image": TWO})
    token = world.log_in("t1", scope)
    created = world.send(ONE, "POST", "/compute/v2.1/servers", {"X-Auth-Token": token})
    headers = {"X-Auth-Token": token, ID: given_to_service(created)}
    world.send(ONE, "GET", "/image/v2/images/1", headers, 2)
    _login, server = world.roots("t1")
    (image,) = server.caused
    assert shown(image) == ("GET", "/image/v2/images/1", [ONE, TWO])
    assert (image.served.instance, image.served.line.service) == (TWO, "image")


def test_a_request_without_token_belongs_to_its_connection(world: World) -> None:
    client = Client(world.proxies[ONE].proxy.bind)
    client.send("GET", "/compute/", ())
    client.send("POST", "/trace/t1/identity/v3/auth/tokens", ())
    world.send(ONE, "GET", "/image/")
    wait_until("all lines", lambda: len(world.lines()) >= 3)
    client.close()
    assert [one.path for one in world.roots("t1")] == ["/compute/", "/identity/v3/auth/tokens"]


def logged(at: str, second: float, route: str, took: int = 100) -> tuple[str, LogLine]:
    """A line of the proxy of *at*: a request of *took* ms."""
    backend = route.partition(" ")[0]
    line = parse_log_line(
        f"2026-11-28T03:00:{second + took / 1000:09.6f}+00:00 127.0.0.1:1 {at} {backend}/server "
        f'0/0/0/1/{took} 200 9 ---- "GET /path HTTP/1.1" {route}'
    )
    assert line
    return at, line


def test_a_validation_belongs_to_the_request_under_way_with_its_token() -> None:
    lines = [
        logged(ONE, 1.0, "local_identity identity {} as=1 trace=t1 minted=abc", 50),
        logged(ONE, 2.0, "local_compute compute {} as=2 came=abc token=abc service=def"),
        logged(ONE, 2.01, "local_identity identity {} as=3 came=nova subject=abc", 9),
        logged(ONE, 2.02, "local_identity identity {} as=4 came=nova subject=def", 9),
        # For another request with this token, which another command sent.
        logged(ONE, 3.0, "local_image image {} as=5 came=other token=other"),
        logged(ONE, 3.01, "local_identity identity {} as=6 came=glance subject=other", 9),
        # Nobody is waiting for this one.
        logged(ONE, 4.0, "local_identity identity {} as=7 came=nova subject=abc", 9),
        # The client itself asks meanwhile, as it does while it waits for a server.
        logged(ONE, 2.04, "local_compute compute {} as=9 came=abc token=abc", 9),
        # The same token in another instance.
        logged(TWO, 2.03, "local_identity identity {} as=8 came=nova subject=abc", 9),
    ]
    ours, others = attribute(reversed(lines), "t1")
    assert [[one.line.notes["as"] for one in root.all()] for root in ours] == [
        ["1"],
        ["2", "3", "4"],
        ["9"],
    ]
    assert [[one.line.notes["as"] for one in root.all()] for root in others] == [
        ["8"],
        ["5", "6"],
        ["7"],
    ]


def test_links_keep_the_trace_as_they_keep_the_scope(world: World) -> None:
    answer = world.send(ONE, "GET", "/trace/t1/identity/v3")
    assert ["x-forwarded-prefix", "/trace/t1"] in answer.json()["headers"]
    segment = Scope({"image": TWO}).url_segment()
    answer = world.send(ONE, "GET", f"/{segment}/trace/t1/identity/v3")
    assert ["x-forwarded-prefix", f"/{segment}/trace/t1"] in answer.json()["headers"]
    assert answer.json()["path"] == "/identity/v3"


def test_a_request_that_no_other_proxy_got_was_still_for_the_peer() -> None:
    _, line = logged(ONE, 1.0, f'peer_{TWO} image {{"image":"{TWO}"}} as=1')
    shown_as = Request(ONE, line).as_dict()
    assert (shown_as["service"], shown_as["instance"]) == ("image", TWO)
    assert shown_as["through"] == [ONE]


def test_an_id_of_the_clients_own_is_noted_and_replaced(world: World) -> None:
    own = "req-00000000-0000-4000-8000-000000000000"
    answer = world.send(ONE, "GET", "/image/v2", {ID: own})
    assert given_to_service(answer) != own
    assert world.lines()[-1][1].notes["of"] == own
    world.send(ONE, "GET", "/image/v2", {ID: 'req-" as=x'})
    assert "of" not in world.lines()[-1][1].notes
