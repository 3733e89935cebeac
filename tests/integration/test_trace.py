"""``./setup-env.py trace``: every request of a command, and none of another one."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from .conftest import Shell

CREATE = (
    "openstack server create traced --image cirros --flavor m1.nano --network private --wait "
    "--scope image=InstanceTwo -f value -c id"
)


@dataclass
class Traced:
    """A create that was traced: its output, its trace, and the diagram."""

    text: str
    trace: dict[str, Any]
    diagram: Path

    @property
    def requests(self) -> list[dict[str, Any]]:
        return list(every(self.trace["requests"]))


def every(requests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in requests:
        yield one
        yield from every(one["caused"])


@pytest.fixture(scope="module")
def traced(one: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A create across instances, with another command beside it all the time."""
    diagram = tmp_path_factory.mktemp("trace") / "trace.svg"
    done = threading.Event()

    def beside() -> None:
        while not done.is_set():
            one.lab.ssh(one.name, "openstack", "server", "show", "beside", check=False)

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        ran = one.lab.setup_env("trace", "--svg", str(diagram), "--", *shlex.split(CREATE))
    finally:
        done.set()
        thread.join()
    last = one.lab.setup_env("trace", "last", "--json")
    yield Traced(ran.stdout, json.loads(last.stdout), diagram)
    one.openstack("server delete --wait traced")


def logged(shell: Shell, program: str, since: str) -> list[str]:
    """The lines of a user's requests in a service's own log.

    Nova has another request's ids in the lines of questions about its versions.
    """
    lines = shell.lab.setup_env("logs", shell.name, program).stdout.splitlines()
    of_a_user = re.compile(r"requestlog \[req-\S+ req-\S+ [0-9a-f]{32} ")
    return [
        line
        for line in lines
        if of_a_user.search(line) and line[:19] >= since and 'v2.1" status' not in line
    ]


def request_id(line: str) -> str:
    """The id that the service gave to the request of a line: the last one in brackets."""
    return str(re.findall(r"req-[0-9a-f-]{36}", line.partition("]")[0])[-1])


def test_every_request_that_nova_and_placement_log_is_in_the_trace(
    traced: Traced, one: Shell
) -> None:
    since = traced.trace["started"][:19].replace("T", " ")
    ids = {request["request_id"] for request in traced.requests}
    nova = logged(one, "nova-api", since)
    # Neutron tells nova about ports by itself, without saying for whom.
    apart = ("beside", "os-server-external-events")
    ours = {request_id(line) for line in nova if not any(word in line for word in apart)}
    assert len(ours) > 3
    assert ours <= ids
    server = traced.text.split()[0]
    allocations = [line for line in logged(one, "placement", since) if server in line]
    assert allocations
    assert {request_id(line) for line in allocations} <= ids


def test_no_request_of_a_command_beside_it_is_in_the_trace(traced: Traced, one: Shell) -> None:
    since = traced.trace["started"][:19].replace("T", " ")
    beside = [line for line in logged(one, "nova-api", since) if "beside" in line]
    assert beside
    ids = {request["request_id"] for request in traced.requests}
    assert ids & {request_id(line) for line in beside} == set()
    logins = [
        one for one in traced.trace["requests"] if one["method"] == "POST" and "auth" in one["path"]
    ]
    assert len(logins) == 1


def test_a_request_is_below_the_one_that_caused_it(traced: Traced) -> None:
    (create,) = (
        request
        for request in traced.trace["requests"]
        if (request["method"], request["path"]) == ("POST", "/compute/v2.1/servers")
    )
    caused = list(every(create["caused"]))
    images = [request for request in caused if request["service"] == "image"]
    assert {tuple(request["through"]) for request in images} == {("InstanceOne", "InstanceTwo")}
    assert {request["service"] for request in caused} >= {"image", "network", "placement"}
    validations = [r for r in every(images) if r["path"] == "/identity/v3/auth/tokens"]
    assert all(r["through"] == ["InstanceTwo", "InstanceOne"] for r in validations)


def test_the_tree_and_the_diagram_show_the_requests(traced: Traced) -> None:
    assert "└─" in traced.text
    assert "image of InstanceTwo through InstanceOne" in traced.text
    root = ElementTree.parse(traced.diagram).getroot()
    words = " ".join(text.strip() for text in root.itertext())
    for lane in ("client InstanceOne", "compute InstanceOne", "image InstanceTwo"):
        assert lane in " ".join(words.split())


def test_no_token_is_in_a_trace_and_no_proxy_goes_on_tracing(traced: Traced, one: Shell) -> None:
    assert "gAAAA" not in json.dumps(traced.trace) + traced.text
    for name in one.lab.config.names:
        configuration = one.lab.host(name).directory / "etc" / "proxy" / "haproxy.cfg"
        assert "X-OpenStack-Request-ID req-" not in configuration.read_text()
    assert one.run("sh", "-c", "ls ~/.config/openstack").split() == ["clouds.yaml"]


def test_the_status_of_the_command_is_that_of_the_trace(one: Shell) -> None:
    command = "openstack image show no-such-image"
    failed = one.lab.setup_env("trace", "--", *command.split(), check=False)
    assert failed.returncode == 1
    assert "404" in failed.stdout


def test_a_trace_leaves_the_faults_of_links_as_they_are(one: Shell) -> None:
    links = ["InstanceOne", "InstanceTwo"]
    one.lab.setup_env("net", *links, "--delay", "50ms")
    try:
        command = "openstack image list --scope image=InstanceTwo"
        traced = one.lab.setup_env("trace", "--", *command.split())
        (link,) = (
            link
            for link in json.loads(one.lab.setup_env("net", "--json").stdout)
            if [link["from"], link["peer"]] == links
        )
    finally:
        one.lab.setup_env("net", "--heal")
    assert "image of InstanceTwo through InstanceOne" in traced.stdout
    assert link["fault"] == "delay 50ms"


def test_following_shows_what_others_do(one: Shell) -> None:
    root = one.lab.config.root
    following = subprocess.Popen(
        [root / "setup-env.py", "trace", "--follow"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=one.lab.environment,
    )
    assert following.stdout
    try:
        while one.openstack("image list -f value"):
            line = following.stdout.readline()
            if "/image/v2/images" in line:
                break
        assert "image of InstanceOne" in line
    finally:
        following.send_signal(2)
        following.wait(20)
