"""What the tokens of an issuer may do: services, methods, a rate, and roles."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openstackoid.proxy.config import Peer, Policy, Proxy, Service
from openstackoid.scope import Scope
from tests.peers import healthy

from .conftest import PREFIXES
from .harness import Answer, Client, EchoServices, RunningProxy, free_port

ONE, TWO = "InstanceOne", "InstanceTwo"
HOST = "127.0.121.1"
TOKENS = "/identity/v3/auth/tokens"
OURS = Scope(dict.fromkeys(PREFIXES, ONE)).tag("t")
THEIRS = Scope({**dict.fromkeys(PREFIXES, ONE), "identity": TWO}).tag("t")

Sends = Callable[..., Answer]


class Issuer:
    """A keystone behind the proxy of *name*, or who plays one: it answers questions with *says*."""

    def __init__(self, name: str = TWO) -> None:
        issuer = self
        self.name = name
        self.says = b"{}"
        self.headers: dict[str, str] = {}
        self.status = 200

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                is_health = self.path == "/healthcheck"
                body = healthy(issuer.name) if is_health else issuer.says
                self.send_response(200 if is_health else issuer.status)
                headers = {"X-Subject-Token": "t", "Content-Type": "application/json"}
                for header in ({} if is_health else headers | issuer.headers).items():
                    self.send_header(*header)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: pytest shows enough."""

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.server.server_address[1]}"

    def says_roles(self, *roles: str) -> None:
        """Answer as keystone does, with *roles*."""
        self.says = json.dumps(described(*roles)).encode()


def described(*roles: str) -> dict[str, object]:
    """A part of keystone's answer to a question about a token."""
    named = [{"id": f"id-{n}", "name": name} for n, name in enumerate(roles)]
    return {
        "token": {
            "methods": ["password"],
            "user": {"name": "é"},
            "roles": named,
            "is_domain": False,
        }
    }


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.server.shutdown()


@contextmanager
def running(policies: tuple[Policy, ...], issuer: Issuer) -> Iterator[Sends]:
    """A proxy with *policies*; sends requests to it."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="policy")))
        echo = stack.enter_context(EchoServices())
        services = tuple(Service(k, p, echo.add(k, HOST)) for k, p in PREFIXES.items())
        proxy = Proxy(ONE, f"{HOST}:{free_port(HOST)}", services, (Peer(TWO, issuer.address),))
        proxy = replace(proxy, issuers=(TWO,), policies=policies, directory=base)
        stack.enter_context(RunningProxy(proxy)).wait_for_peer(TWO, "UP")
        client = Client(proxy.bind)
        stack.callback(client.close)
        yield client.send


def messages(answer: Answer) -> str:
    assert answer.headers["content-type"] == "application/json"
    return str(answer.json()["error"]["message"])


@pytest.fixture(scope="module")
def narrow(issuer: Issuer) -> Iterator[Sends]:
    policy = Policy(TWO, services=("image", "compute"), methods=("GET", "HEAD"))
    with running((policy,), issuer) as send:
        yield send


@pytest.mark.parametrize("carrier", ["canonical", "X-Scope"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("service", ["image", "compute", "network", "placement"])
def test_a_policy_names_services_and_methods(
    narrow: Sends, service: str, method: str, carrier: str
) -> None:
    headers = [("X-Auth-Token", THEIRS)]
    if carrier == "X-Scope":
        headers.append(("X-Scope", f'{{"image": "{ONE}"}}'))
    answer = narrow(method, f"{PREFIXES[service]}/v2", tuple(headers))
    if service not in ("image", "compute"):
        assert answer.status == 403
        if method != "HEAD":
            assert messages(answer) == (
                "the policy of InstanceOne for tokens of InstanceTwo allows services: "
                "image, compute"
            )
    elif method not in ("GET", "HEAD"):
        assert answer.status == 403
        assert messages(answer).endswith("allows methods: GET, HEAD")
    else:
        assert answer.status == 200


@pytest.mark.parametrize("token", [OURS, "t"])
@pytest.mark.parametrize("service", PREFIXES)
def test_own_tokens_have_no_policy(narrow: Sends, service: str, token: str) -> None:
    assert narrow("DELETE", f"{PREFIXES[service]}/v2", (("X-Auth-Token", token),)).status == 200


def test_a_policy_may_allow_nothing(issuer: Issuer) -> None:
    with running((Policy(TWO, services=()),), issuer) as send:
        answer = send("GET", "/image/v2", (("X-Auth-Token", THEIRS),))
        assert messages(answer).endswith("allows services: none")
    with running((Policy(TWO, methods=()),), issuer) as send:
        answer = send("GET", "/image/v2", (("X-Auth-Token", THEIRS),))
        assert messages(answer).endswith("allows methods: none")


def test_a_rate_is_for_the_tokens_of_one_issuer(issuer: Issuer) -> None:
    with running((Policy(TWO, rate=5),), issuer) as send:
        answers = [send("GET", "/image/v2", (("X-Auth-Token", THEIRS),)) for _ in range(30)]
        ours = [send("GET", "/image/v2", (("X-Auth-Token", OURS),)) for _ in range(30)]
    statuses = [answer.status for answer in answers]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses
    (refused, *_) = [answer for answer in answers if answer.status == 429]
    assert refused.headers["retry-after"] == "1"
    assert messages(refused).endswith("allows 5 requests per second")
    assert {answer.status for answer in ours} == {200}


def asked(send: Sends, subject: str = THEIRS) -> Answer:
    return send("GET", TOKENS, (("X-Auth-Token", "of-the-service"), ("X-Subject-Token", subject)))


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Policy(TWO), ["member", "reader", "admins"]),
        (Policy(TWO, admin=True), ["admin", "member", "reader", "Admin", "service", "admins"]),
        (Policy(TWO, roles=("reader",)), ["reader"]),
        (Policy(TWO, roles=("reader", "admin")), ["reader"]),
        (Policy(TWO, roles=("reader", "admin"), admin=True), ["admin", "reader"]),
        (Policy(TWO, roles=()), []),
    ],
)
def test_only_the_roles_that_a_policy_grants_count(
    issuer: Issuer, policy: Policy, kept: list[str]
) -> None:
    roles = ("admin", "member", "reader", "Admin", "service", "admins")
    issuer.says_roles(*roles)
    with running((policy,), issuer) as send:
        answer = asked(send)
    assert answer.status == 200
    assert answer.headers["x-subject-token"] == THEIRS
    found = answer.json()["token"]
    assert [role["name"] for role in found.pop("roles")] == kept
    whole = described(*roles)["token"]
    assert isinstance(whole, dict)
    whole.pop("roles")
    assert found == whole


def test_the_roles_of_own_tokens_all_count(issuer: Issuer) -> None:
    with running((Policy(TWO, roles=()),), issuer) as send:
        assert asked(send, OURS).json()["service"] == "identity"


def test_an_issuers_refusal_stays_one(issuer: Issuer) -> None:
    issuer.status = 404
    try:
        with running((Policy(TWO),), issuer) as send:
            assert asked(send).status == 404
    finally:
        issuer.status = 200


ADMIN = '[{"name": "admin"}]'


@pytest.mark.parametrize(
    "says",
    [
        f'{{"token": {{"roles": {ADMIN}}}}}'.encode("utf-16"),
        f'{{"token": {{"roles": {ADMIN}}}}}'.encode("utf-32-le"),
        f'{{"access": {{"user": {{"roles": {ADMIN}}}}}}}'.encode(),
        f'{{"token": {{}}, "access": {{"user": {{"roles": {ADMIN}}}}}}}'.encode(),
        f'{{"token": {{"roles": []}}, "token": {{"roles": {ADMIN}}}}}'.encode(),
        f'{{"token": {{"roles": [], "roles": {ADMIN}}}}}'.encode(),
        f'{{"token": {{"r\\u006fles": {ADMIN}}}}}'.encode(),
        f'{{"t\\u006fken": {{"roles": {ADMIN}}}}}'.encode(),
        b'{"token": {"roles": [{"n\\u0061me": "adm\\u0069n"}]}}',
        b'{"token": {"roles": [{"name": "reader", "name": "admin"}]}}',
        b'{"token": {"roles": {"name": "admin"}}}',
        f'{{"token": {{"roles": {ADMIN}'.encode(),
        f'\xef\xbb\xbf{{"token": {{"roles": {ADMIN}}}}}'.encode("latin-1"),
        f'{{"token": {{"a": "\\"", "roles": {ADMIN}}}}}'.encode(),
        f'{{"token": {{"a": NaN, "roles": {ADMIN}}}}}'.encode(),
        f'{{"token"\x0b: {{"roles": {ADMIN}}}}}'.encode(),
        b'{"token": {"roles": [{"name": "admin"}, ]}}',
        b'{"token": {"roles": [["admin"], "admin", {"name": ["admin"]}]}}',
    ],
)
def test_no_way_of_writing_makes_an_admin(issuer: Issuer, says: bytes) -> None:
    issuer.says = says
    with running((Policy(TWO),), issuer) as send:
        answer = asked(send)
    assert answer.status in (200, 503)
    if answer.status == 200:
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert set(answer.json()) == {"token"}
        roles = answer.json()["token"].get("roles", [])
        assert not any(role.get("name", "").lower() == "admin" for role in roles)


def test_a_compressed_answer_makes_no_admin(issuer: Issuer) -> None:
    issuer.says_roles("admin")
    issuer.headers = {"Content-Encoding": "identity", "X-Roles": "admin"}
    try:
        with running((Policy(TWO),), issuer) as send:
            answer = asked(send)
    finally:
        issuer.headers = {}
    assert not {"content-encoding", "x-roles"} & answer.headers.keys()


ROLES = st.sampled_from(
    ["admin", "ADMIN", "member", "reader", "é", '"', "\\", "}", "]", ",", "name"]
)


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(roles=st.lists(ROLES, max_size=6), is_ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_roles_that_stay_are_those_that_were_there(
    issuer: Issuer, readers: Sends, roles: list[str], is_ascii: bool, indent: int | None
) -> None:
    text = json.dumps(described(*roles), ensure_ascii=is_ascii, indent=indent)
    issuer.says = text.encode()
    found = asked(readers).json()["token"]["roles"]
    assert [role["name"] for role in found] == [role for role in roles if role.lower() != "admin"]


@pytest.fixture(scope="module")
def readers(issuer: Issuer) -> Iterator[Sends]:
    with running((Policy(TWO),), issuer) as send:
        yield send
