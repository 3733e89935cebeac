"""Tokens that clients hand on: each login, question and revocation keeps the scope."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.wheels.spec import PROXY_PORT
from openstackoid.scope import Scope
from tests.conftest import RunningLab
from tests.integration.conftest import Shell
from tests.integration.wire import GARBAGE, IMAGES, TOKENS, ask, login

SCOPE = Scope({"image": "InstanceTwo"})


@pytest.fixture
def token(lab: RunningLab) -> str:
    """A token of InstanceOne's administrator, in the scope."""
    return login(lab, "InstanceOne", "admin", SCOPE.to_json())


def frontend(lab: RunningLab, name: str = "InstanceOne") -> str:
    return f"http://{lab.config.instance(name).address}:{PROXY_PORT}"


def images(lab: RunningLab, token: str) -> list[str]:
    status, _, answer = ask(lab, "InstanceOne", IMAGES, {"X-Auth-Token": token})
    assert status == 200
    return [image["id"] for image in answer["images"]]


@pytest.mark.parametrize("url", ["/identity/v3", f"/{SCOPE.url_segment()}/identity/v3"])
def test_the_stock_command_logs_in_with_a_token_and_stays_in_its_scope(
    lab: RunningLab, stock_openstack: Path, token: str, two: Shell, url: str
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}
    options = ["--os-auth-type", "v3token", "--os-token", token]
    options += ["--os-auth-url", frontend(lab) + url]
    options += ["--os-project-name", "admin", "--os-project-domain-name", "Default"]
    command = [str(stock_openstack), *options, "image", "list", "-f", "value", "-c", "ID"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [two.image]


def test_curl_gets_the_tag_of_a_token_that_it_asks_about(lab: RunningLab, token: str) -> None:
    headers = ["-H", f"X-Auth-Token: {token}", "-H", f"X-Subject-Token: {token}"]
    command = ["curl", "--noproxy", "*", "-sI", *headers, f"{frontend(lab)}{TOKENS}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"x-subject-token: {token}" in answer.splitlines()


def test_a_login_with_a_token_gives_one_with_its_scope(
    lab: RunningLab, token: str, two: Shell
) -> None:
    project = {"name": "demo", "domain": {"id": "default"}}
    identity = {"methods": ["token"], "token": {"id": token}}
    body = {"auth": {"identity": identity, "scope": {"project": project}}}
    status, headers, answer = ask(lab, "InstanceOne", TOKENS, {}, body)
    assert (status, answer["token"]["project"]["name"]) == (201, "demo")
    fresh = headers["x-subject-token"]
    assert fresh.partition("!")[2] == token.partition("!")[2]
    assert images(lab, fresh) == [two.image]


def test_a_token_of_another_issuer_is_exchanged_there(lab: RunningLab, two: Shell) -> None:
    token = login(lab, "InstanceTwo", "admin", '{"image": "InstanceTwo"}')
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": token}}}}
    status, headers, answer = ask(lab, "InstanceOne", TOKENS, {}, body)
    assert status == 201
    assert '"identity":"InstanceTwo"' in headers["x-subject-token"]
    assert answer["token"]["user"]["id"] == two.user(two)


@pytest.mark.parametrize("name", ["InstanceOne", "InstanceTwo"])
def test_garbage_gets_401_from_every_service_of_every_instance(lab: RunningLab, name: str) -> None:
    paths = (IMAGES, "/compute/v2.1/servers", "/networking/v2.0/networks", "/scope", TOKENS)
    for path in paths:
        for garbage in (GARBAGE, SCOPE.tag("garbage"), "garbage"):
            headers = {"X-Auth-Token": garbage, "X-Subject-Token": garbage}
            status, _, answer = ask(lab, name, path, headers)
            # To keystone, a subject that does not exist is one that cannot be found.
            assert status in ((401, 404) if path == TOKENS else (401,)), (path, garbage, answer)


def test_a_revoked_token_ends_at_its_issuer_at_once_and_elsewhere_with_the_cache(
    lab: RunningLab, token: str
) -> None:
    headers = {"X-Auth-Token": token}
    assert len(images(lab, token)) == 1
    about = {"X-Auth-Token": token, "X-Subject-Token": token}
    assert _send(lab, "DELETE", f"/{SCOPE.url_segment()}{TOKENS}", about) == 204
    revoked = time.monotonic()
    assert ask(lab, "InstanceOne", TOKENS, about)[0] == 401
    assert ask(lab, "InstanceOne", "/scope", headers)[0] == 401
    while ask(lab, "InstanceOne", IMAGES, headers)[0] != 401:
        assert time.monotonic() < revoked + lab.config.token_cache + 10
        time.sleep(1)
    print(f"image service of InstanceTwo: {time.monotonic() - revoked:.0f} s after the revocation")


def _send(lab: RunningLab, method: str, path: str, headers: Mapping[str, str]) -> int:
    request = urllib.request.Request(frontend(lab) + path, headers=dict(headers), method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        status: int = answer.status
        return status


def test_garbage_or_too_much_in_the_body_is_no_login(lab: RunningLab) -> None:
    identity: dict[str, Any] = {"methods": ["token"], "token": {"id": SCOPE.tag("garbage")}}
    status, _, _ = ask(lab, "InstanceOne", TOKENS, {}, {"auth": {"identity": identity}})
    assert status == 404  # As vanilla keystone says of a token that it does not know.
    with pytest.raises(urllib.error.HTTPError, match="413"):
        large = urllib.request.Request(
            frontend(lab) + TOKENS, data=b"x" * 2**21, headers={"Content-Type": "application/json"}
        )
        urllib.request.urlopen(large, timeout=20)
