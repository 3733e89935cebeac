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


def _run(pane: Pane, command: str) -> str:
    return _type(pane, "InstanceOne", command)


def test_a_newcomer_sees_what_the_readme_promises(lab: RunningLab, panes: dict[str, Pane]) -> None:
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
    if lab.config.has_guests:
        _sees_a_guest(panes["InstanceOne"], image)
    _type(panes["InstanceOne"], "InstanceOne", "openstack server delete my-vm --wait")


def _sees_a_guest(pane: Pane, image: str) -> None:
    """The rest of the README's example: the console of my-vm, and ssh into another server."""
    deadline = time.monotonic() + 60
    while "this image is from InstanceTwo" not in _run(pane, "openstack console log show my-vm"):
        assert time.monotonic() < deadline, _screen(pane)
    address = ""
    server = f"openstack server create door --scope image=InstanceTwo --image {image}"
    try:
        _run(pane, "openstack keypair create me > me.pem; chmod 600 me.pem")
        _run(pane, "openstack security group create ssh")
        _run(pane, "openstack security group rule create --protocol tcp --dst-port 22 ssh")
        made = f"{server} --flavor m1.nano --key-name me --security-group ssh --wait"
        assert re.search(r"\| status +\| ACTIVE +\|", _run(pane, made))
        found = _run(pane, "openstack floating ip create public -f value -c floating_ip_address")
        address = found.splitlines()[-2]
        _run(pane, f"openstack server add floating ip door {address}")
        known = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        deadline = time.monotonic() + 60
        login = f"ssh {known} -i me.pem root@{address} uname -sn"
        while "\nLinux door\n" not in _run(pane, login):
            assert time.monotonic() < deadline, _screen(pane)
    finally:
        _run(pane, "openstack server delete door --wait")
        _run(
            pane,
            "openstack floating ip list -f value -c ID | xargs -r openstack floating ip delete",
        )
        _run(pane, "openstack security group delete ssh; openstack keypair delete me; rm -f me.pem")
