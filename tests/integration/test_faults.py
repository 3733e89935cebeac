"""Links and services that are broken on purpose: what local and scoped requests see of that."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from lab.wheels.relay import LIE
from lab.wheels.spec import PROXY_PORT
from tests.conftest import RunningLab
from tests.integration.conftest import Shell
from tests.integration.wire import IMAGES, ask, login

ONE, TWO = "InstanceOne", "InstanceTwo"
SERVERS = "/compute/v2.1/servers"
SCOPE = f'{{"image": "{TWO}"}}'
#: Seconds until a scoped request names the culprit, and until scoped work goes on after healing.
NAMED, HEALED = 3, 5


@dataclass
class Local:
    """Requests to an instance's own services, all the time; each has to succeed."""

    lab: RunningLab
    name: str
    failed: list[object] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def run(self, ended: threading.Event) -> None:
        headers = {"X-Auth-Token": login(self.lab, self.name, "admin")}
        for path in itertools.cycle((IMAGES, SERVERS, "/networking/v2.0/networks")):
            if ended.wait(0.1):
                return
            began = time.monotonic()
            try:
                status, _, answer = ask(self.lab, self.name, path, headers)
            except (OSError, http.client.HTTPException) as error:
                status, answer = 0, error
            self.times.append(time.monotonic() - began)
            if status != 200:
                self.failed.append((path, status, answer))


Undisturbed = Callable[..., contextlib.AbstractContextManager[None]]


@pytest.fixture
def undisturbed(lab: RunningLab, request: pytest.FixtureRequest) -> Undisturbed:
    """Runs local requests in an instance meanwhile, and checks that all of them succeed."""

    @contextlib.contextmanager
    def run(*names: str) -> Iterator[None]:
        ended, instances = threading.Event(), [Local(lab, name) for name in names]
        threads = [threading.Thread(target=one.run, args=[ended]) for one in instances]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        for one in instances:
            times = sorted(one.times)
            print(
                f"{request.node.name}: {len(times)} local requests in {one.name}, "
                f"median {times[len(times) // 2] * 1000:.0f} ms, longest {times[-1] * 1000:.0f} ms"
            )
            assert one.failed == []

    return run


@dataclass
class Net:
    """The command ``net``."""

    lab: RunningLab
    is_broken: bool = False

    def __call__(self, line: str) -> float:
        """Run it with the options *line*; return when it has."""
        self.lab.setup_env("net", *line.split())
        self.is_broken = line != "--heal"
        return time.monotonic()

    def links(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What it shows."""
        rows = json.loads(self.lab.setup_env("net", "--json").stdout)
        return {(row["from"], row["peer"]): row for row in rows}


@pytest.fixture
def net(lab: RunningLab) -> Iterator[Net]:
    """All links are healed afterwards."""
    one = Net(lab)
    yield one
    if one.is_broken:
        one("--heal")


@pytest.fixture(scope="module")
def token(lab: RunningLab) -> str:
    """A token of InstanceOne whose scope has InstanceTwo's images."""
    return login(lab, ONE, "admin", SCOPE)


def scoped(lab: RunningLab, token: str) -> tuple[int, str, float]:
    """The status and the text of a scoped request's answer, and its seconds."""
    began = time.monotonic()
    with urlopen(lab, IMAGES, token) as response:
        return response.status, response.read().decode(), time.monotonic() - began


def urlopen(lab: RunningLab, path: str, token: str) -> http.client.HTTPResponse:
    """InstanceOne's answer, with any status and of any kind."""
    address = str(lab.config.instance(ONE).address)
    connection = http.client.HTTPConnection(address, PROXY_PORT, timeout=20)
    connection.request("GET", path, headers={"X-Auth-Token": token, "Connection": "close"})
    return connection.getresponse()


def works_again(lab: RunningLab, token: str, what: str) -> None:
    """Check that scoped requests soon succeed again, now that *what* is healed."""
    began = time.monotonic()
    while scoped(lab, token)[0] != 200:
        assert time.monotonic() - began < HEALED
        time.sleep(0.05)
    print(f"{what}: healed after {time.monotonic() - began:.2f} s")


@pytest.mark.parametrize("fault", ["cut", "hang"])
def test_a_broken_link_is_named_at_once_and_disturbs_nobody(
    lab: RunningLab, token: str, net: Net, undisturbed: Undisturbed, fault: str
) -> None:
    assert scoped(lab, token)[0] == 200
    with undisturbed(ONE, TWO):
        net(f"{ONE} {TWO} --{fault}")
        status, text, took = scoped(lab, token)
        print(f"{fault}: {status} after {took:.2f} s: {text}")
        assert (status, took < NAMED) == (503, True)
        assert f"instance {TWO} cannot be reached from {ONE}" in text
        links = net.links()
        there, back = links[ONE, TWO], links[TWO, ONE]
        assert (there["fault"], there["state"], there["seconds"]) == (fault, "DOWN", None)
        assert (back["fault"], back["state"], back["error"]) == ("", "UP", "")
        net("--heal")
        works_again(lab, token, fault)


def test_a_liar_is_believed_until_the_next_health_check(
    lab: RunningLab, token: str, net: Net, undisturbed: Undisturbed
) -> None:
    with undisturbed(ONE, TWO):
        began = net(f"{ONE} {TWO} --lie")
        status, text, _ = scoped(lab, token)
        while status == 200:
            assert text == LIE.decode()
            assert time.monotonic() - began < NAMED
            time.sleep(0.05)
            # A request that is connecting when the health check fails gets no answer (HAProxy 2.6).
            with contextlib.suppress(http.client.RemoteDisconnected):
                status, text, _ = scoped(lab, token)
        print(f"lie: {status} after {time.monotonic() - began:.2f} s: {text}")
        assert (status, f"instance {TWO} cannot be reached" in text) == (503, True)
        net("--heal")
        works_again(lab, token, "lie")


def test_a_broken_link_to_the_issuer_fails_its_new_tokens_only(
    lab: RunningLab, net: Net, undisturbed: Undisturbed
) -> None:
    with undisturbed(ONE, TWO):
        for fault in ("lie", "hang", "cut"):
            fresh = login(lab, ONE, "admin", SCOPE)
            began = net(f"{TWO} {ONE} --{fault}")
            status, _, took = scoped(lab, fresh)
            while fault == "lie" and status == 500:
                assert time.monotonic() - began < NAMED
                status, _, took = scoped(lab, fresh)
            print(f"{fault} on the way to the issuer: {status} after {took:.2f} s")
            # Keystone's middleware in InstanceTwo makes the answer, and names nobody.
            assert (status, took < NAMED) == (401, True)
        net("--heal")
        works_again(lab, fresh, "the way to the issuer")


def test_a_slow_link_answers_right_and_as_slowly_as_it_should(
    lab: RunningLab, token: str, net: Net, undisturbed: Undisturbed
) -> None:
    listed = json.loads(scoped(lab, token)[1])
    path = f"/image/v2/images/{listed['images'][0]['id']}/file"
    with undisturbed(ONE, TWO):
        net(f"{ONE} {TWO} --delay 300ms --jitter 20ms")
        status, text, took = scoped(lab, token)
        assert (status, json.loads(text)) == (200, listed)
        [link] = [link for link in net.links().values() if link["fault"]]
        print(f"delay 300ms: {took:.2f} s, round trip {link['seconds']:.3f} s")
        assert link["fault"] == "delay 300ms, jitter 20ms"
        assert 0.28 <= link["seconds"] < 0.6
        assert took >= 0.28

        # Of many lost pieces in a row, the health check would make a cut.
        net(f"{ONE} {TWO} --loss 5%")
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: scoped(lab, token), range(40)))
        assert [(status, json.loads(text)) for status, text, _ in answers] == [(200, listed)] * 40
        print(f"loss 5%: at the longest {max(took for _, _, took in answers):.2f} s")

        net(f"{ONE} {TWO} --rate 2mbit")
        began = time.monotonic()
        with urlopen(lab, path, token) as response:
            size = len(response.read(400_000))
        rate = size * 8 / (time.monotonic() - began) / 1e6
        print(f"rate 2mbit: {rate:.2f} mbit/s")
        assert 1 < rate < 2.5


def test_a_cut_breaks_open_connections_and_leaves_no_server_in_limbo(
    lab: RunningLab, one: Shell, token: str, net: Net, undisturbed: Undisturbed
) -> None:
    headers = {"X-Auth-Token": token}

    def first(path: str, key: str, name: str) -> str:
        listed = ask(lab, ONE, path, headers)[2][key]
        return next(str(entry["id"]) for entry in listed if entry["name"] == name)

    image = first(IMAGES, "images", "cirros")
    server = {
        "name": "test-cut",
        "imageRef": image,
        "flavorRef": first("/compute/v2.1/flavors", "flavors", "m1.nano"),
        "networks": [{"uuid": first("/networking/v2.0/networks", "networks", "private")}],
    }

    def create() -> tuple[int, Any]:
        status, _, answer = ask(lab, ONE, SERVERS, headers, {"server": server})
        return status, answer

    def download() -> float:
        """When the download of the image breaks."""
        with (
            pytest.raises((http.client.IncompleteRead, OSError)),
            urlopen(lab, f"/image/v2/images/{image}/file", token) as response,
        ):
            response.read()
        return time.monotonic()

    # Slow, so that a guest's image is under way for long.
    net(f"{ONE} {TWO} --rate 500kbit")
    with undisturbed(ONE, TWO), ThreadPoolExecutor(3) as pool:
        broken, early = pool.submit(download), pool.submit(create)
        time.sleep(1)
        late = pool.submit(create)
        cut = net(f"{ONE} {TWO} --cut")
        refused = create()
        assert broken.result() - cut < NAMED
    print(f"early {early.result()[0]}, late {late.result()[0]}, refused {refused}")
    assert early.result()[0] == 202
    assert refused[0] in (500, 503)
    deadline = time.monotonic() + 120
    while (states := set(_made(one).values())) - {"ACTIVE", "ERROR"}:
        assert time.monotonic() < deadline, states
        time.sleep(0.5)
    print(f"servers that were under way: {states}")
    one.openstack(f"server delete --wait {' '.join(_made(one))}")


def _made(one: Shell) -> dict[str, str]:
    """The states of the servers of the test, by their ID."""
    headers = {"X-Auth-Token": login(one.lab, one.name, "admin")}
    _, _, listed = ask(one.lab, one.name, f"{SERVERS}/detail?name=test-cut", headers)
    return {server["id"]: server["status"] for server in listed["servers"]}


def test_killed_and_frozen_services_stay_so_until_up(
    lab: RunningLab, token: str, undisturbed: Undisturbed
) -> None:
    with undisturbed(ONE):
        lab.setup_env("kill", f"{TWO}/glance-api")
        status, text, took = scoped(lab, token)
        print(f"kill {TWO}/glance-api: {status} after {took:.2f} s: {text}")
        assert (status, took < NAMED) == (503, True)
        assert f"the image service of {TWO} cannot be reached" in text
        lab.setup_env("kill", "--hang", TWO)
        status, text, took = scoped(lab, token)
        print(f"kill {TWO} --hang: {status} after {took:.2f} s: {text}")
        assert (status, took < NAMED) == (503, True)
        assert f"instance {TWO} cannot be reached from {ONE}" in text
        assert _services(lab) == {"frozen", "stopped"}
        lab.setup_env("kill", f"{TWO}/nova-api")
        lab.setup_env("net", ONE, TWO, "--cut")
        lab.setup_env("up", "--no-attach")
        assert _services(lab) == {"running"}
        works_again(lab, token, "up")


def _services(lab: RunningLab) -> set[str]:
    """The states that InstanceTwo's services have."""
    status = json.loads(lab.setup_env("status", "--json").stdout)
    [two] = [one for one in status["instances"] if one["name"] == TWO]
    return {service["state"] for service in two["services"]}


def test_unknown_names_are_refused_with_the_known_ones(lab: RunningLab) -> None:
    refused = lab.setup_env("kill", f"{TWO}/glance", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: unknown service 'glance'; known: epmd, glance-api, ")
    refused = lab.setup_env("net", ONE, "Nowhere", "--cut", check=False)
    assert refused.returncode == 1
    assert refused.stderr == f"error: unknown instance 'Nowhere'; known: {ONE}, {TWO}\n"
