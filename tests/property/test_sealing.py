"""Sealed tokens: what a peer gets of a user's token, and what it can do with that."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from openstackoid.proxy.config import Peer, Proxy, Service, rotate_keys
from openstackoid.scope import Scope

from .conftest import PREFIXES
from .harness import Answer, Client, EchoServices, RunningProxy, free_port

ONE, TWO, THREE = "InstanceOne", "InstanceTwo", "Three"
HOSTS = {ONE: "127.0.111.1", TWO: "127.0.112.1", THREE: "127.0.113.1"}
SECRET = "gAAAAABsecret"
TOKENS = "/identity/v3/auth/tokens"
#: What a service of the peer calls with the user's token.
CALLS = {"compute": ("image", "network", "placement"), "image": (), "network": ()}


@dataclass(frozen=True, repr=False)
class Sealed:
    """The running proxies. One seals its tokens for the others."""

    proxies: dict[str, RunningProxy]
    echo: EchoServices

    def send(self, at: str, source: str, *request: object) -> Answer:
        """Send a request to the proxy of *at* from the address of the instance *source*."""
        client = Client(self.proxies[at].proxy.bind, HOSTS.get(source, source))
        try:
            return client.send(*request)  # type: ignore[arg-type]
        finally:
            client.close()

    def loot(self, audience: str, instance: str, **scope: str) -> tuple[str, Scope]:
        """What *instance* gets as a token in a request to its service, and the scope."""
        resolved = Scope({**dict.fromkeys(PREFIXES, ONE), **scope, audience: instance})
        token = resolved.tag(SECRET)
        path = f"{PREFIXES[audience]}/v2"
        answer = self.send(ONE, ONE, "GET", path, (("X-Auth-Token", token),))
        assert answer.json()["service"] == f"{instance} {audience}"
        return dict(answer.json()["headers"])["x-auth-token"], resolved


def proxy(
    name: str, base: Path, binds: dict[str, str], echo: EchoServices, **more: object
) -> Proxy:
    peers = tuple(
        Peer(other, at, sealed=name == ONE) for other, at in binds.items() if other != name
    )
    described = Proxy(
        name,
        binds[name],
        tuple(
            Service(kind, prefix, echo.add(f"{name} {kind}", HOSTS[name]), keep_alive=True)
            for kind, prefix in PREFIXES.items()
        ),
        peers,
        tuple(peer.name for peer in peers),
        directory=base / name,
    )
    return replace(described, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world() -> Iterator[Sealed]:
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealed")))
        echo = stack.enter_context(EchoServices())
        binds = {name: f"{host}:{free_port(host)}" for name, host in HOSTS.items()}
        proxies = {
            name: stack.enter_context(RunningProxy(proxy(name, base, binds, echo)))
            for name in HOSTS
        }
        for running in proxies.values():
            for peer in running.proxy.peers:
                running.wait_for_peer(peer.name, "UP")
        yield Sealed(proxies, echo)


def bare(token: str) -> str:
    return token.partition("!")[0]


def _bytes(sealed: str) -> bytes:
    """What a sealed token consists of; two texts may differ in bits that nobody uses."""
    text = sealed.removeprefix("oid1.")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return text.encode()


def is_inside(token: str, answer: Answer) -> bool:
    return token in answer.body.decode() or token in str(answer.headers)


def test_a_peer_gets_a_sealed_token_with_the_same_scope(world: Sealed) -> None:
    token, scope = world.loot("image", TWO)
    assert token == scope.tag(bare(token))
    assert bare(token).startswith("oid1.")
    assert SECRET not in token
    assert SECRET.encode() not in _bytes(bare(token))


def test_local_requests_have_the_token_itself(world: Sealed) -> None:
    token = Scope({**dict.fromkeys(PREFIXES, ONE), "image": TWO}).tag(SECRET)
    answer = world.send(ONE, ONE, "GET", "/compute/v2", (("X-Auth-Token", token),))
    assert dict(answer.json()["headers"])["x-auth-token"] == token


def test_a_service_knows_the_token_by_its_text_for_a_while(world: Sealed) -> None:
    tokens = {world.loot("image", TWO)[0] for _ in range(20)}
    # HAProxy has one Lua for each of its threads.
    assert len(tokens) <= 8


def test_a_token_of_another_issuer_passes_as_it_is(world: Sealed) -> None:
    scope = Scope({**dict.fromkeys(PREFIXES, ONE), "identity": TWO, "image": THREE})
    headers = (("X-Auth-Token", scope.tag("foreign")),)
    answer = world.send(ONE, ONE, "GET", "/image/v2", headers)
    assert dict(answer.json()["headers"])["x-auth-token"] == scope.tag("foreign")


def validate(world: Sealed, source: str, subject: str, caller: str | None = None) -> Answer:
    headers = (("X-Subject-Token", subject), ("X-Auth-Token", caller or subject))
    return world.send(ONE, source, "GET", TOKENS, headers)


def test_the_audience_can_validate_the_token_and_learns_nothing_of_it(world: Sealed) -> None:
    token, _ = world.loot("image", TWO)
    answer = validate(world, TWO, bare(token))
    headers = dict(answer.json()["headers"])
    assert (headers["x-subject-token"], headers["x-auth-token"]) == (SECRET, SECRET)
    assert answer.headers["x-subject-token"] == bare(token)


def test_a_service_of_the_peer_validates_through_its_own_proxy(world: Sealed) -> None:
    token, _ = world.loot("image", TWO)
    headers = (("X-Subject-Token", token), ("X-Auth-Token", "of-the-service"))
    answer = world.send(TWO, TWO, "GET", TOKENS, headers)
    assert answer.json()["service"] == f"{ONE} identity"
    seen = dict(answer.json()["headers"])
    assert (seen["x-subject-token"], seen["x-auth-token"]) == (SECRET, SECRET)
    assert answer.headers["x-subject-token"] == token


def test_the_services_that_the_audience_calls_can_validate_the_token(world: Sealed) -> None:
    token, _ = world.loot("compute", TWO, image=THREE, network=TWO)
    assert validate(world, THREE, bare(token)).status == 200
    other, _ = world.loot("image", TWO, network=THREE)
    assert validate(world, THREE, bare(other)).status == 404


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "HEAD"])
@pytest.mark.parametrize("audience", CALLS)
@pytest.mark.parametrize("wanted", PREFIXES)
def test_a_sealed_token_opens_what_its_audience_calls(
    world: Sealed, audience: str, wanted: str, method: str
) -> None:
    token, _ = world.loot(audience, TWO, network=ONE if audience != "network" else TWO)
    path = f"{PREFIXES[wanted]}/v3/things"
    answer = world.send(ONE, TWO, method, path, (("X-Auth-Token", token),))
    if wanted in CALLS[audience]:
        assert answer.status == (201 if method == "POST" else 200)
        if method != "HEAD":
            seen = dict(answer.json()["headers"])["x-auth-token"]
            assert seen == SECRET + token.removeprefix(bare(token))
    else:
        assert answer.status in (401, 403)
        assert not is_inside(SECRET, answer)


@pytest.mark.parametrize("source", [ONE, THREE, "127.0.0.1"])
def test_nobody_else_can_use_the_loot(world: Sealed, source: str) -> None:
    token, _ = world.loot("compute", TWO, network=TWO)
    headers = (("X-Auth-Token", token),)
    assert world.send(ONE, source, "GET", "/image/v2/images", headers).status == 403
    assert validate(world, source, bare(token)).status == 404


scopes = st.fixed_dictionaries({name: st.sampled_from([ONE, ONE, TWO, THREE]) for name in PREFIXES})


@settings(
    max_examples=500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(scope=scopes, place=st.sampled_from(["tag", "X-Scope", "URL", "none"]))
def test_another_scope_opens_nothing(world: Sealed, scope: dict[str, str], place: str) -> None:
    """Whatever scope a peer writes beside a sealed token, the token does not leave by it."""
    token, sealed_with = world.loot("compute", TWO, network=TWO)
    changed = Scope(scope)
    path, headers = "/image/v2/images", [("X-Auth-Token", token)]
    if place == "tag":
        headers = [("X-Auth-Token", changed.tag(bare(token)))]
    elif place == "X-Scope":
        headers.append(("X-Scope", json.dumps(scope)))
    elif place == "URL":
        path = f"/{changed.url_segment()}{path}"
    else:
        headers = [("X-Auth-Token", bare(token))]
    answer = world.send(ONE, TWO, "GET", path, tuple(headers))
    if place != "none" and changed == sealed_with:
        assert dict(answer.json()["headers"])["x-auth-token"] == sealed_with.tag(SECRET)
    else:
        assert not is_inside(SECRET, answer)


@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_changed_token_opens_nothing(world: Sealed, data: st.DataObject) -> None:
    token, scope = world.loot("compute", TWO, network=TWO)
    sealed = bare(token)
    at = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.sampled_from("AZaz09-_.") | st.just(""))
    forged = sealed[:at] + other + sealed[at + 1 :]
    assume(_bytes(forged) != _bytes(sealed))
    answer = world.send(ONE, TWO, "GET", "/image/v2", (("X-Auth-Token", scope.tag(forged)),))
    assert not is_inside(SECRET, answer)
    assert not is_inside(SECRET, validate(world, TWO, forged))


@pytest.mark.parametrize("path", ["/identity/v3/users", "/identity/v3/auth/catalog", TOKENS])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_keystone_does_nothing_for_a_sealed_token(world: Sealed, path: str, method: str) -> None:
    token, _ = world.loot("compute", TWO, network=TWO)
    for sent in (token, bare(token)):
        answer = world.send(ONE, TWO, method, path, (("X-Auth-Token", sent),))
        assert not is_inside(SECRET, answer)
    for subject in (token, bare(token)):
        headers = (("X-Auth-Token", "mine"), ("X-Subject-Token", subject))
        assert not is_inside(SECRET, world.send(ONE, TWO, method, path, headers))


@pytest.fixture
def short(world: Sealed) -> Iterator[Sealed]:
    """The same, with tokens that are sealed for two seconds."""
    running = world.proxies[ONE]
    before = running.proxy
    running.proxy = replace(before, sealed_for=2)
    running.reload()
    yield world
    running.proxy = before
    running.reload()


def test_a_sealed_token_expires(short: Sealed) -> None:
    token, _ = short.loot("compute", TWO, network=TWO)
    headers = (("X-Auth-Token", token),)
    assert short.send(ONE, TWO, "GET", "/image/v2", headers).status == 200
    time.sleep(3)
    assert short.send(ONE, TWO, "GET", "/image/v2", headers).status == 401
    assert validate(short, TWO, bare(token)).status == 404


def test_keys_change_under_live_tokens(world: Sealed) -> None:
    token, _ = world.loot("compute", TWO, network=TWO)
    running = world.proxies[ONE]

    def opens() -> bool:
        answer = world.send(ONE, TWO, "GET", "/image/v2", (("X-Auth-Token", token),))
        return answer.status == 200

    for still in (True, False):
        rotate_keys(running.proxy.directory)
        running.reload()
        assert opens() is still
    assert oct(running.proxy.keys.stat().st_mode)[-3:] == "600"
