"""What an instance reveals to a hostile peer, and what such a peer can stop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.wheels.spec import PROXY_PORT
from tests.conftest import RunningLab
from tests.integration.conftest import Shell
from tests.integration.wire import GARBAGE, IMAGES, TOKENS, ask, login
from tests.peers import RecordingPeer


@pytest.fixture(scope="module")
def listener(lab: RunningLab) -> Iterator[RecordingPeer]:
    """A peer that listens at the address of InstanceTwo's proxy."""
    lab.setup_env("halt", "InstanceTwo")
    try:
        address = str(lab.config.instance("InstanceTwo").address)
        with RecordingPeer("InstanceTwo", address, PROXY_PORT) as peer:
            wait_for_peer(lab, "UP")
            yield peer
    finally:
        lab.setup_env("up", "--no-attach")
        wait_for_peer(lab, "UP")


def wait_for_peer(lab: RunningLab, state: str) -> None:
    """Wait until InstanceOne sees InstanceTwo in *state*."""

    def seen() -> str:
        status = json.loads(lab.setup_env("status", "--json").stdout)
        [one] = [one for one in status["instances"] if one["name"] == "InstanceOne"]
        return str(one["peers"]["InstanceTwo"])

    deadline = time.monotonic() + 30
    while seen() != state:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def peer(lab: RunningLab, listener: RecordingPeer) -> Iterator[RecordingPeer]:
    """The same peer, healthy and with nothing recorded."""
    listener.requests.clear()
    yield listener
    listener.recover()
    wait_for_peer(lab, "UP")


def test_a_peer_gets_the_users_token_and_no_other(
    lab: RunningLab, one: Shell, peer: RecordingPeer
) -> None:
    [flavor] = [f["ID"] for f in one.json("flavor list") if f["Name"] == "m1.nano"]
    token = login(lab, "InstanceOne", "demo", '{"image": "InstanceTwo"}')
    server = {
        "name": "test-loot",
        "flavorRef": flavor,
        "imageRef": "11111111-2222-3333-4444-555555555555",
        "networks": "none",
    }
    headers = {"X-Auth-Token": token, "X-OpenStack-Nova-API-Version": "2.37"}
    ask(lab, "InstanceOne", "/compute/v2.1/servers", headers, {"server": server})

    assert peer.requests
    credentials = {"x-auth-token", "x-subject-token", "x-service-token", "authorization", "cookie"}
    for request in peer.requests:
        assert credentials & request.headers.keys() == {"x-auth-token"}
        bare = request.headers["x-auth-token"].partition("!")[0]
        subject = {"X-Auth-Token": bare, "X-Subject-Token": bare}
        _, _, answer = ask(lab, "InstanceOne", TOKENS, subject)
        assert answer["token"]["user"]["name"] == "demo"
        assert {role["name"] for role in answer["token"]["roles"]} <= {"member", "reader"}


def test_tokens_of_a_peer_that_hangs_do_not_stop_local_requests(
    lab: RunningLab, peer: RecordingPeer
) -> None:
    local = {"X-Auth-Token": login(lab, "InstanceOne", "demo")}
    done = threading.Event()

    def attack(number: int) -> list[int]:
        statuses = []
        while not done.is_set():
            headers = {"X-Auth-Token": GARBAGE.replace("garbage", f"garbage{number}", 1)}
            statuses.append(ask(lab, "InstanceOne", IMAGES, headers)[0])
            time.sleep(0.2)
        return statuses

    with ThreadPoolExecutor(10) as pool:
        peer.hang()
        attacks = [pool.submit(attack, number) for number in range(10)]
        deadline = time.monotonic() + 8
        served = []
        while time.monotonic() < deadline:
            served.append(ask(lab, "InstanceOne", IMAGES, local)[0])
        done.set()
        refused = {status for attack_ in attacks for status in attack_.result()}
    assert set(served) == {200}
    assert len(served) > 10
    assert refused <= {401, 503}


def test_scoped_requests_to_a_peer_that_hangs_name_it_within_three_seconds(
    lab: RunningLab, peer: RecordingPeer
) -> None:
    token = login(lab, "InstanceOne", "demo", '{"image": "InstanceTwo"}')
    peer.hang()
    began = time.monotonic()
    status, _, answer = ask(lab, "InstanceOne", IMAGES, {"X-Auth-Token": token})
    assert time.monotonic() - began < 3
    assert status == 503
    assert "InstanceTwo" in answer["error"]["message"]
