"""The audit: who did what here with a token of another instance, and what became of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from openstackoid.proxy.config import Peer, Policy, Proxy, Service
from openstackoid.proxy.log import Audited, audit
from openstackoid.scope import Scope

from .conftest import PREFIXES
from .harness import Answer, Client, EchoServices, RunningProxy, free_port, wait_until
from .test_policies import HOST, ONE, TWO, Issuer

THREE = "InstanceThree"
SECRET = "gAAAAABsecret"


class Audit:
    """A proxy that accepts Two's tokens, but not Three's, and refuses all writes of Two's."""

    def __init__(self, stack: ExitStack, issuer: Issuer) -> None:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audit")))
        echo = stack.enter_context(EchoServices())
        services = tuple(Service(k, p, echo.add(k, HOST)) for k, p in PREFIXES.items())
        third = Issuer(THREE)
        stack.callback(third.server.shutdown)
        # A peer that is DOWN makes HAProxy's own lines in the log.
        peers = (Peer(TWO, issuer.address), Peer(THREE, third.address))
        proxy = Proxy(ONE, f"{HOST}:{free_port(HOST)}", services, peers, (TWO,), directory=base)
        policies = (Policy(TWO, methods=("GET",), admin=True),)
        self.running = stack.enter_context(RunningProxy(replace(proxy, policies=policies)))
        self.running.wait_for_peer(TWO, "UP")
        self.issuer = issuer
        self.client = Client(proxy.bind)
        stack.callback(self.client.close)

    def send(
        self, token: str, method: str = "GET", path: str = "/image/v2/images", **headers: str
    ) -> Answer:
        return self._logged(method, path, (("X-Auth-Token", token), *headers.items()))

    def _logged(self, *request: object) -> Answer:
        """Send a request, and wait for its line in the log."""
        lines = len(self.text().splitlines())
        answer = self.client.send(*request)  # type: ignore[arg-type]
        wait_until("a line in the log", lambda: len(self.text().splitlines()) > lines)
        return answer

    def validate(self, token: str, user: object, project: object) -> None:
        """Ask the issuer about *token*, which it says is of *user* and *project*."""
        self.issuer.says = json.dumps({"token": {"user": user, "project": project}}).encode()
        headers = (("X-Auth-Token", "service"), ("X-Subject-Token", token))
        assert self._logged("GET", "/identity/v3/auth/tokens", headers).status == 200

    def text(self) -> str:
        return self.running.log.read_text()

    def last(self) -> Audited:
        return list(audit(self.text().splitlines()))[-1]


@pytest.fixture(scope="module")
def audited() -> Iterator[Audit]:
    with ExitStack() as stack:
        issuer = Issuer()
        stack.callback(issuer.server.shutdown)
        yield Audit(stack, issuer)


def token_of(issuer: str, secret: str = SECRET) -> str:
    return Scope({**dict.fromkeys(PREFIXES, ONE), "identity": issuer}).tag(secret)


def test_a_request_has_its_user_and_its_project(audited: Audit) -> None:
    token = token_of(TWO)
    audited.validate(token, {"name": "alice", "id": "u1"}, {"name": "demo", "id": "p1"})
    audited.send(token, path="/image/v2/images?limit=2")
    last = audited.last()
    assert (last.issuer, last.user, last.project) == (TWO, "alice (u1)", "demo (p1)")
    assert (last.method, last.path) == ("GET", "/image/v2/images")
    assert (last.service, last.instance, last.peer) == ("image", ONE, "127.0.0.1")
    assert (last.decision, last.status) == ("passed", 200)


def test_a_request_has_the_request_id_of_its_service(audited: Audit) -> None:
    own = "req-12345678-1234-1234-1234-123456789abc"
    audited.send(token_of(TWO), **{"X-OpenStack-Request-ID": own})
    assert audited.last().request_id == own


def test_each_token_has_its_own_user(audited: Audit) -> None:
    for name in ("alice", "bob"):
        user = {"name": name, "id": f"id of {name}"}
        audited.validate(token_of(TWO, name), user, {"name": "demo", "id": "p1"})
    for name in ("alice", "bob"):
        audited.send(token_of(TWO, name))
        assert audited.last().user == f"{name} (id of {name})"


def test_a_user_that_nobody_named_is_none(audited: Audit) -> None:
    audited.send(token_of(TWO, "unknown"))
    assert (audited.last().user, audited.last().decision) == (None, "passed")


def test_what_a_policy_refuses_is_refused(audited: Audit) -> None:
    assert audited.send(token_of(TWO), "DELETE").status == 403
    last = audited.last()
    assert (last.issuer, last.decision, last.status) == (TWO, "refused", 403)


def test_tokens_of_an_issuer_that_is_not_accepted_are_refused(audited: Audit) -> None:
    assert audited.send(token_of(THREE)).status == 401
    last = audited.last()
    assert (last.issuer, last.decision, last.status) == (THREE, "refused", 401)


def test_requests_with_own_tokens_are_not_audited(audited: Audit) -> None:
    before = len(list(audit(audited.text().splitlines())))
    audited.send(SECRET)
    audited.send(token_of(ONE))
    assert len(list(audit(audited.text().splitlines()))) == before


@pytest.mark.parametrize(
    "name",
    [
        'a" id=req-1 user="admin',
        "two\nlines",
        "{} } é \\",
        "x" * 20_000,
        ["a", "list"],
        None,
        "",
    ],
)
def test_no_name_breaks_a_line(audited: Audit, name: object) -> None:
    token = token_of(TWO, f"named {len(str(name))}")
    lines = len(audited.text().splitlines())
    audited.validate(token, {"name": name, "id": "u1"}, {"name": "demo", "id": "p1"})
    audited.send(token)
    assert len(audited.text().splitlines()) == lines + 2
    shown = name.replace("é", "")[:64] if isinstance(name, str) else ""
    assert audited.last().user == f"{shown} (u1)"


def test_a_long_path_hides_nothing(audited: Audit) -> None:
    audited.send(token_of(TWO), "DELETE", path=f"/image/v2/images/{'x' * 20_000}")
    assert (audited.last().issuer, audited.last().method) == (TWO, "DELETE")
    assert audited.last().path.startswith("/image/v2/images/xxx")


def test_no_token_is_in_the_log(audited: Audit) -> None:
    assert SECRET not in audited.text()
