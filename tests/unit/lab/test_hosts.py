"""Machines behind a jump host that only the user's ssh configuration knows, with real sshds."""

from __future__ import annotations

import getpass
import json
import shutil
from pathlib import Path

import pytest

from lab.config import load
from lab.providers import machines, provision
from lab.providers.hosts import Hosts
from lab.ssh import Remote
from lab.steps import Steps
from tests.unit.lab.conftest import Sandbox

NAME = "Behind"


@pytest.fixture
def jumped(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """A lab on a machine (InstanceTwo's sshd) that ssh reaches through InstanceOne's sshd."""
    sandbox.ok("up")
    certain = (
        f"User {getpass.getuser()}\nPort 2222\nIdentityFile {sandbox.state}/provider/key\n"
        f"UserKnownHostsFile {sandbox.state}/provider/known_hosts\nIdentityAgent none\n"
    )
    # Only this file gives a meaning to the names of the target and of the jump host.
    (tmp_path / "config").write_text(
        f"Host bastion\nHostName 127.{sandbox.network}.1.1\n"
        f"Host target\nHostName 127.{sandbox.network}.2.1\nProxyJump bastion\n"
        f"Host *\n{certain}"
    )
    # ssh reads its configuration from the home in /etc/passwd, whatever HOME is.
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=":")
    monkeypatch.setattr(machines, "USER", getpass.getuser())

    root = sandbox.root / "hosts"
    root.mkdir()
    instance = {"name": NAME, "address": "192.0.2.7", "ssh": "target"}
    (root / "lab.yaml").write_text(json.dumps({"provider": "hosts", "instances": [instance]}))
    hosts = Hosts(load(root))
    directory = root / ".lab" / "provider"
    directory.mkdir(parents=True)
    shutil.copy(sandbox.state / "provider" / "key", directory)
    with Steps(root / "log") as steps:
        sections = hosts._start([NAME], steps)
    (directory / f"{NAME}.administrator").write_text(sections[NAME])
    return hosts


def open_endpoint(hosts: Hosts, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    key = (sandbox.state / "InstanceTwo/ssh/host_key.pub").read_text()
    monkeypatch.setattr(provision, "host_keys", lambda _: [" ".join(key.split()[:2])])
    hosts._write_endpoints({NAME: hosts._endpoint(NAME, hosts.administrator(NAME))})


def whereami(remote: Remote) -> str:
    return remote.run(["printenv", "OPENSTACKOID_INSTANCE"]).stdout.strip()


def test_the_users_jump_host_works_for_the_administrator(jumped: Hosts) -> None:
    assert whereami(jumped.administrator(NAME).remote) == "InstanceTwo"


def test_the_users_jump_host_works_for_the_instances_user(
    jumped: Hosts, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_endpoint(jumped, sandbox, monkeypatch)
    assert jumped.is_up(NAME)
    assert whereami(Remote(jumped.ssh_config, NAME)) == "InstanceTwo"
    sandbox.ok("halt", "InstanceOne")
    assert not jumped.is_up(NAME)


def test_a_machine_behind_several_jump_hosts_is_reached_by_one_command(
    jumped: Hosts, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    through = "ProxyJump bastion,me@second:2022"
    config.write_text(config.read_text().replace("ProxyJump bastion", through))
    with Steps(tmp_path / "log") as steps:
        section = jumped._start([NAME], steps)[NAME]
    [line] = [line.strip() for line in section.splitlines() if "proxy" in line]
    assert line == (
        "proxycommand ssh -o BatchMode=yes -o ConnectTimeout=5 -J bastion -W '[%h]:%p'"
        " ssh://me@second:2022"
    )
