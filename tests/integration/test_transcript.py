"""The README's example, typed into the panes and read back from the screen."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from libtmux import Pane, Server

from lab.tmux import SESSION
from tests.conftest import RunningLab

ID = re.compile(r"\| ([0-9a-f]{8}-[0-9a-f-]{27}) \| cirros \| active \|")


@pytest.fixture
def panes(lab: RunningLab) -> dict[str, Pane]:
    """The panes of the lab's session by instance, wide enough for the output."""
    lab.setup_env("up", "--no-attach")
    server = Server(socket_name=lab.tmux_socket)
    session = server.sessions.get(session_name=SESSION)
    resize = ["resize-window", "-t", SESSION, "-x", "230", "-y", "120"]
    subprocess.run(["tmux", "-L", lab.tmux_socket, *resize], check=True)
    assert session is not None
    return {
        str(pane.cmd("display-message", "-p", "#{@instance}").stdout[0]): pane
        for pane in session.panes
    }


def _screen(pane: Pane) -> str:
    lines = pane.cmd("capture-pane", "-p", "-J", "-S", "-200").stdout
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _type(pane: Pane, name: str, command: str) -> str:
    """The screen after *command* has ended and the prompt is back."""
    prompt = f"stack@{name}:~$"
    pane.send_keys("clear", enter=True)
    deadline = time.monotonic() + 20
    while _screen(pane) != prompt:
        assert time.monotonic() < deadline, _screen(pane)
        time.sleep(0.1)
    pane.cmd("clear-history")
    pane.send_keys(command, enter=True)
    deadline = time.monotonic() + 90
    while not _screen(pane).endswith(f"\n{prompt}"):
        assert time.monotonic() < deadline, _screen(pane)
        time.sleep(0.2)
    return _screen(pane)


def test_a_newcomer_sees_what_the_readme_promises(panes: dict[str, Pane]) -> None:
    assert list(panes) == ["InstanceOne", "InstanceTwo"]
    found = {}
    for name, pane in panes.items():
        screen = _type(pane, name, "openstack image list")
        assert screen.startswith(f"stack@{name}:~$ openstack image list\n")
        [found[name]] = ID.findall(screen)
    assert found["InstanceOne"] != found["InstanceTwo"]

    image = found["InstanceTwo"]
    scope = """'{"image": "InstanceTwo"}'"""
    screen = _type(
        panes["InstanceOne"],
        "InstanceOne",
        f"openstack server create my-vm --scope {scope} --image {image} --flavor m1.tiny --wait",
    )
    assert re.search(rf"\| image +\| cirros \({image}\) +\|", screen)
    assert re.search(r"\| status +\| ACTIVE +\|", screen)
    _type(panes["InstanceOne"], "InstanceOne", "openstack server delete my-vm --wait")
