"""The handling of forged tokens and headers."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.wheels.spec import PROXY_PORT
from tests.conftest import RunningLab
from tests.integration.conftest import Shell
from tests.integration.wire import GARBAGE, IMAGES, TOKENS, ask, login

USERS = "/identity/v3/users"


def test_accounts_of_services_are_services_and_nothing_else(lab: RunningLab, one: Shell) -> None:
    rows = one.json("role assignment list --names --project service")
    assert {row["User"].partition("@")[0] for row in rows} == {
        "glance",
        "neutron",
        "nova",
        "placement",
    }
    others = {row["User"].partition("@")[0] for row in rows if row["Role"] != "service"}
    # Nova asks for more of the one that tells it about real ports (lab/wheels/services.py).
    assert others == ({"neutron"} if lab.config.has_guests else set())


def test_an_invalid_foreign_token_costs_three_lines_and_no_login(
    lab: RunningLab, shell: Callable[[str], Shell]
) -> None:
    logs = [
        path
        for name in ("InstanceOne", "InstanceTwo")
        for path in (shell(name).directory / "log").glob("*.log")
    ]

    def lines() -> dict[Path, list[str]]:
        return {path: path.read_text(errors="replace").splitlines() for path in logs}

    # The first request makes glance log in with its own account.
    assert ask(lab, "InstanceOne", IMAGES, {"X-Auth-Token": GARBAGE})[0] == 401
    time.sleep(1)
    before = lines()
    headers = {"X-Auth-Token": GARBAGE.replace("garbage", "other", 1)}
    assert ask(lab, "InstanceOne", IMAGES, headers)[0] == 401
    time.sleep(1)
    new = [line for path, known in lines().items() for line in known[len(before[path]) :]]
    # Nova's own tasks ask at any time too, and their tokens are then validated: none is refused.
    others = ("healthcheck", '"GET /placement', '"GET /networking')
    about = [line for line in new if not any(other in line for other in others)]
    assert [line for line in about if "POST" in line] == []
    refused = [line for line in about if '"GET ' in line and re.search(r" 40[14] \d+ ", line)]
    assert 1 <= len(refused) <= 3, about


@pytest.mark.parametrize("header", ["X-Storage-Token", "X-Identity-Status"])
def test_no_header_bypasses_the_proxy(lab: RunningLab, header: str) -> None:
    status, _, answer = ask(lab, "InstanceTwo", IMAGES, {header: GARBAGE})
    assert status == 400
    assert header.lower() in answer["error"]["message"]


def test_a_token_that_was_revoked_elsewhere_ends_here_when_the_cache_does(lab: RunningLab) -> None:
    token = login(lab, "InstanceOne", "demo", '{"image": "InstanceTwo"}')
    headers = {"X-Auth-Token": token}
    assert ask(lab, "InstanceOne", IMAGES, headers)[0] == 200
    bare = token.partition("!")[0]
    address = lab.config.instance("InstanceOne").address
    revoke = urllib.request.Request(
        f"http://{address}:{PROXY_PORT}{TOKENS}",
        headers={"X-Auth-Token": bare, "X-Subject-Token": bare},
        method="DELETE",
    )
    urllib.request.urlopen(revoke, timeout=20).close()
    deadline = time.monotonic() + lab.config.token_cache + 10
    while ask(lab, "InstanceOne", IMAGES, headers)[0] != 401:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.fixture
def application_credentials(lab: RunningLab) -> Iterator[Callable[[], int]]:
    """Makes an application credential of demo in InstanceOne, and returns the HTTP status."""
    demo, admin = (
        {"X-Auth-Token": login(lab, "InstanceOne", user, "{}")} for user in ("demo", "admin")
    )
    users = ask(lab, "InstanceOne", USERS, admin)[2]["users"]
    [id_] = [user["id"] for user in users if user["name"] == "demo"]
    path, made = f"{USERS}/{id_}/application_credentials", []

    def make() -> int:
        wanted = {"application_credential": {"name": uuid.uuid4().hex}}
        status, _, answer = ask(lab, "InstanceOne", path, demo, wanted)
        made.append(answer.get("application_credential", {}).get("id"))
        return status

    yield make
    address = lab.config.instance("InstanceOne").address
    for one in filter(None, made):
        url = f"http://{address}:{PROXY_PORT}{path}/{one}"
        urllib.request.urlopen(urllib.request.Request(url, headers=demo, method="DELETE")).close()


def test_a_request_never_has_the_roles_of_another_one(
    lab: RunningLab, application_credentials: Callable[[], int]
) -> None:
    # Keystone's middleware mixes the tokens of two threads up (lab/wheels/services.py).
    admin = {"X-Auth-Token": login(lab, "InstanceOne", "admin", "{}")}
    is_over = threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            assert ask(lab, "InstanceOne", USERS, admin)[0] == 200

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(keep_asking) for _ in range(3)]
        try:
            statuses = Counter(application_credentials() for _ in range(20))
        finally:
            is_over.set()
    assert statuses == {201: 20}
    for one in asking:
        one.result()
