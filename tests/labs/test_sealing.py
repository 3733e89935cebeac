"""What a hostile instance can do with the tokens that it gets, in a lab that seals them."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.wheels.spec import PROXY_PORT, TLS_PORT
from tests.conftest import RunningLab
from tests.integration import wire
from tests.integration.wire import login
from tests.labs.proxies import without_proxy
from tests.peers import Recorded, RecordingPeer

ONE, TWO = "InstanceOne", "InstanceTwo"
SCOPE = '{"compute": "InstanceTwo", "network": "InstanceTwo"}'
#: A request to each service, for which a bare token of the user is good.
REQUESTS = [
    ("GET", "/identity/v3/auth/projects"),
    ("GET", "/identity/v3/auth/catalog"),
    ("GET", "/compute/v2.1/servers"),
    ("GET", "/networking/v2.0/networks"),
    ("GET", "/image/v2/images"),
    ("POST", "/image/v2/images"),
]


def certificate(lab: RunningLab, name: str) -> tuple[str, str]:
    """The files with the certificate of the instance *name*, and with the lab's authority."""
    directory = lab.config.state / name / "etc"
    return str(directory / "certificate.pem"), str(directory / "ca.pem")


def ask(
    lab: RunningLab, request: tuple[str, str], headers: dict[str, str], sender: str | None
) -> int:
    """The status of a *request* to the proxy of One.

    It comes from the instance *sender*, with its address and its certificate; or as any client's.
    """
    method, path = request
    address = str(lab.config.instance(ONE).address)
    connection = http.client.HTTPConnection(address, PROXY_PORT, timeout=20)
    if sender:
        own, authority = certificate(lab, sender)
        context = ssl.create_default_context(cafile=authority)
        context.check_hostname = False
        context.load_cert_chain(own)
        source = (str(lab.config.instance(sender).address), 0)
        connection = http.client.HTTPSConnection(
            address, TLS_PORT, timeout=20, source_address=source, context=context
        )
    body = json.dumps({"name": "test-loot"}) if method == "POST" else None
    connection.request(method, path, body, {**headers, "Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


@contextmanager
def recorded(lab: RunningLab, name: str) -> Iterator[RecordingPeer]:
    """A hostile proxy in the place of the one of the instance *name*, with its certificate."""
    address = str(lab.config.instance(name).address)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate(lab, name)[0])
    with without_proxy(lab, name), RecordingPeer(name, address, TLS_PORT, context) as peer:
        yield peer


@pytest.fixture(scope="module")
def loot(three: RunningLab) -> dict[str, str]:
    """The headers of a request for InstanceTwo's nova, which that instance recorded."""
    token = login(three, ONE, "demo", SCOPE)
    with recorded(three, TWO) as peer:
        deadline = time.monotonic() + 20
        while not peer.requests:
            assert time.monotonic() < deadline
            ask(three, ("GET", "/compute/v2.1/servers"), {"X-Auth-Token": token}, None)
    request: Recorded = peer.requests[0]
    assert token.partition("!")[0] not in str(request.headers)
    return request.headers


def test_the_loot_opens_nothing(three: RunningLab, loot: dict[str, str]) -> None:
    """The recorded headers, with and without the scope, for each service of the issuer."""
    tagged = loot["x-auth-token"]
    bare = tagged.partition("!")[0]
    statuses = {
        (kind, *request): ask(three, request, {"X-Auth-Token": token}, TWO)
        for kind, token in (("tagged", tagged), ("bare", bare))
        for request in REQUESTS
    }
    allowed = {key: status for key, status in statuses.items() if status not in (401, 403, 404)}
    mine = {"X-Auth-Token": login(three, ONE, "demo")}
    _, _, listed = wire.ask(three, ONE, "/image/v2/images?name=test-loot", mine)
    for image in listed["images"]:
        ask(three, ("DELETE", f"/image/v2/images/{image['id']}"), mine, None)
    # That is what the scope needs: InstanceTwo's nova fetches the image as the user.
    assert allowed == {
        ("tagged", "GET", "/image/v2/images"): 200,
        ("tagged", "POST", "/image/v2/images"): 201,
    }


def test_the_loot_opens_nothing_for_a_third_instance(
    three: RunningLab, loot: dict[str, str]
) -> None:
    headers = {"X-Auth-Token": loot["x-auth-token"]}
    for sender in ("InstanceThree", None):
        assert {ask(three, request, headers, sender) for request in REQUESTS} <= {401, 403}


def test_the_loot_is_no_credential_for_a_login(three: RunningLab, loot: dict[str, str]) -> None:
    bare = loot["x-auth-token"].partition("!")[0]
    identity = {"methods": ["token"], "token": {"id": bare}}
    connection = http.client.HTTPConnection(
        str(three.config.instance(ONE).address), PROXY_PORT, timeout=20
    )
    body = json.dumps({"auth": {"identity": identity}})
    connection.request("POST", "/identity/v3/auth/tokens", body)
    assert connection.getresponse().status in (401, 404)
    connection.close()


def test_a_server_is_made_with_sealed_tokens(three: RunningLab) -> None:
    """Nova of Two works with the user's sealed token, and gets One's image."""
    create = "openstack server create test-sealed --image cirros --flavor m1.nano --wait -f json"
    scope = ("--scope", "compute=InstanceTwo,network=InstanceTwo")
    made = three.ssh(ONE, *create.split(), "--network", "private", *scope)
    assert json.loads(made.stdout)["status"] == "ACTIVE"
    three.ssh(ONE, "openstack", "server", "delete", "test-sealed", *scope)
