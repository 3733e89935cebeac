"""Services on ports of their own: their frontends, and the proxy as a client's forward proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import PREFIXES, Federation, running
from .harness import Answer, Client
from .model import Refused, Request, Served
from .test_routing import CASES, assert_is, requests

ONE, TWO = "InstanceOne", "InstanceTwo"


@pytest.fixture(scope="module")
def ports() -> Iterator[Federation]:
    """The federation, with the services of InstanceOne on ports of their own."""
    with running(port_style=ONE) as federation:
        yield federation


@pytest.fixture(scope="module")
def frontends(ports: Federation) -> Iterator[dict[str, Client]]:
    """A client of each service's frontend of InstanceOne."""
    with ExitStack() as stack:
        clients = {one.type: Client(one.frontends[0]) for one in ports.proxies[ONE].proxy.services}
        for client in clients.values():
            stack.callback(client.close)
        yield clients


def with_prefix(path: str, prefix: str) -> str:
    """The same path at the address that all services share."""
    known = "|".join(PREFIXES.values())
    if path.startswith("/scope/"):
        return re.sub(
            rf"^(/scope/[^/?]*)(?=[/?]|$)(?!(?:{known})(?:[/?]|$))/?", rf"\1{prefix}/", path
        )
    return path if re.match(rf"(?:/scope|{known})(?:[/?]|$)", path) else prefix + path


def without_prefix(served: Served, *, was_bare: bool) -> Served:
    """What a service that knows no prefix gets of this."""
    prefix = PREFIXES[served.service]
    request = served.request.with_path(
        re.sub(rf"^{prefix}(?:/|(?=\?)|$)", "/", served.request.path)
    )
    if not was_bare:
        outer = request.value("X-Forwarded-Prefix") or ""
        request = request.with_header("X-Forwarded-Prefix", outer + prefix)
    return replace(served, request=request)


def decide(ports: Federation, entry: str, request: Request) -> Refused | Served:
    """What the model says of *request* at an instance, or at the port of a service of One."""
    name, full = entry, request
    if entry in PREFIXES:
        name, full = ONE, request.with_path(with_prefix(request.path, PREFIXES[entry]))
    expected = ports.world.decide(name, full)
    if isinstance(expected, Served) and expected.instance == ONE:
        return without_prefix(expected, was_bare=full.path != request.path)
    return expected


def without_prefixes(request: Request) -> Request:
    path = re.sub("|".join(PREFIXES.values()), "", request.path)
    return request.with_path(path if path[:1] == "/" else f"/{path}")


EVERY = settings(
    max_examples=CASES // 4,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
anywhere = requests() | requests().map(without_prefixes)


@EVERY
@given(entry=st.sampled_from([ONE, TWO, *PREFIXES, *PREFIXES]), request_=anywhere)
def test_a_path_without_prefix_belongs_to_the_service_of_the_port(
    ports: Federation, frontends: dict[str, Client], entry: str, request_: Request
) -> None:
    client = frontends.get(entry) or ports.clients[entry]
    answer = client.send(request_.method, request_.path, request_.headers, request_.body)
    expected = decide(ports, entry, request_)
    assert_is(expected, answer, request_)


@EVERY
@given(
    entry=st.sampled_from([ONE, "identity", "image"]),
    place=st.tuples(st.sampled_from([ONE, *PREFIXES]), st.booleans()),
    request_=anywhere,
)
def test_a_forward_proxy_decides_like_the_place_that_is_asked_for(
    ports: Federation,
    frontends: dict[str, Client],
    entry: str,
    place: tuple[str, bool],
    request_: Request,
) -> None:
    wanted, is_backend = place
    authority = "{}:{}".format(*(frontends.get(wanted) or ports.clients[wanted]).address)
    if is_backend and wanted in PREFIXES:
        (service,) = (one for one in ports.proxies[ONE].proxy.services if one.type == wanted)
        authority = service.address
    client = frontends.get(entry) or ports.clients[entry]
    url = f"http://{authority}{request_.path}"
    answer = client.send(request_.method, url, request_.headers, request_.body, host=authority)
    assert_is(decide(ports, wanted, request_), answer, request_, host=authority)


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("CONNECT", "127.0.0.1:22"),
        ("CONNECT", "{backend}"),
        ("GET", "http://127.0.0.1:22/"),
        ("GET", "http://example.org/identity/v3"),
        ("GET", "https://{backend}/v3"),
        ("GET", "http://me@{backend}/v3"),
        ("GET", "ftp://{backend}/v3"),
        ("GET", "http://{peer}/identity/v3"),
    ],
)
@pytest.mark.parametrize("entry", [ONE, "identity"])
def test_the_proxy_is_no_open_proxy(
    ports: Federation, frontends: dict[str, Client], entry: str, method: str, url: str
) -> None:
    proxy = ports.proxies[ONE].proxy
    (backend,) = (one.address for one in proxy.services if one.type == "identity")
    peer = ports.proxies[TWO].proxy.bind
    client = frontends.get(entry) or ports.clients[entry]
    asked = url.format(backend=backend, peer=peer)
    host = re.sub(r"^[a-z]+://(?:.*@)?|/.*", "", asked)
    answer = client.send(method, asked, host=host)
    assert answer.status == 403
    assert answer.headers["content-type"] == "application/json"
    message = answer.json()["error"]["message"]
    assert message.startswith("the proxy of InstanceOne forwards to its own services only: ")
    assert backend in message


def test_a_whole_url_may_have_no_path(ports: Federation) -> None:
    (image,) = (one for one in ports.proxies[ONE].proxy.services if one.type == "image")
    answer = ports.clients[ONE].send("GET", f"http://{image.address}", host=image.address)
    assert (answer.json()["service"], answer.json()["path"]) == ("InstanceOne image", "/")


def test_links_lead_back_to_where_the_client_came_from(
    ports: Federation, frontends: dict[str, Client]
) -> None:
    def prefix(answer: Answer) -> str | None:
        headers: dict[str, str] = dict(answer.json()["headers"])
        return headers.get("x-forwarded-prefix")

    there = (("X-Scope", '{"image": "InstanceOne"}'),)
    assert prefix(frontends["image"].send("GET", "/v2/images")) is None
    assert prefix(ports.clients[ONE].send("GET", "/image/v2/images")) == "/image"
    assert prefix(ports.clients[TWO].send("GET", "/image/v2/images", there)) == "/image"
