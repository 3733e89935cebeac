"""What Vagrant would have VirtualBox do for our Vagrantfile; VirtualBox itself is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml

from lab import apt
from lab.hypervisors import HOST_ONLY, outside_host_only
from tests.conftest import ROOT
from tests.machines import vboxmanage

Calls = list[list[str]]
Up = Callable[..., tuple[str, Calls]]
SCRIPT = Path(vboxmanage.__file__)


@pytest.fixture
def vagrant_up(tmp_path: Path) -> Up:
    """Runs ``vagrant up`` with *addresses* in lab.yaml: what it says, and VBoxManage's calls."""
    if apt.missing(["vagrant"]) and os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip(f"Vagrant is missing: {apt.install_line(['vagrant'])}")
    apt.ensure(["vagrant"], print)
    project, programs = tmp_path / "project", tmp_path / "bin"
    project.mkdir()
    programs.mkdir()
    (programs / "VBoxManage").write_text(f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@"\n')
    (programs / "VBoxManage").chmod(0o755)
    shutil.copy(ROOT / "Vagrantfile", project)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORDING": str(tmp_path),
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_DEFAULT_PROVIDER": "virtualbox",
    }

    def vagrant(*arguments: str) -> str:
        done = subprocess.run(
            ["vagrant", *arguments],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr

    def up(addresses: str | None = None) -> tuple[str, Calls]:
        described = yaml.safe_load((ROOT / "lab.yaml").read_text())
        if addresses:
            described["addresses"]["vagrant"] = addresses
        described["vagrant"] |= {"box": "empty", "cpus": 3, "memory": 5000}
        (project / "lab.yaml").write_text(yaml.safe_dump(described))
        assert vagrant("box", "add", "--name", "empty", str(empty_box(tmp_path))) == ""
        said = "".join(vagrant("up", name) for name in ("InstanceOne", "InstanceTwo"))
        recorded = (tmp_path / "calls").read_text().splitlines()
        return said, [json.loads(line) for line in recorded]

    return up


def empty_box(directory: Path) -> Path:
    """A box for VirtualBox without a disk; nobody starts it."""
    files = {"metadata.json": '{"provider": "virtualbox"}', "box.ovf": "", "Vagrantfile": ""}
    for name, text in files.items():
        (directory / name).write_text(text)
    box = directory / "empty.box"
    with tarfile.open(box, "w") as archive:
        for name in files:
            archive.add(directory / name, name)
    return box


def test_each_machine_gets_its_size_and_a_network_that_virtualbox_allows(vagrant_up: Up) -> None:
    said, calls = vagrant_up()
    assert said.count("a recording starts no machine") == 2
    networks = [call for call in calls if call[0] == "hostonlyif"]
    configured = ["--ip", "192.168.56.1", "--netmask", "255.255.255.0"]
    assert networks == [
        ["hostonlyif", "create"],
        ["hostonlyif", "ipconfig", "vboxnet0", *configured],
    ]
    machines = list(dict.fromkeys(call[1] for call in calls if call[0] == "modifyvm"))
    assert len(machines) == 2
    for machine in machines:
        changes = [call[2:] for call in calls if call[:2] == ["modifyvm", machine]]
        given = {
            key: value for one in changes for key, value in zip(one[::2], one[1::2], strict=True)
        }
        assert given["--cpus"] == "3"
        assert given["--memory"] == "5000"
        assert (given["--nic1"], given["--nic2"]) == ("nat", "hostonly")
        assert (given["--hostonlyadapter2"], given["--cableconnected2"]) == ("vboxnet0", "on")
        assert given["--natpf1"].startswith("ssh,tcp,127.0.0.1,")
        assert given["--natpf1"].endswith(",,22")
        assert ["startvm", machine, "--type", "headless"] in calls


def test_vagrant_refuses_the_addresses_that_doctor_names(vagrant_up: Up) -> None:
    refused = "10.9.0.11"
    said, calls = vagrant_up(refused)
    assert refused in said
    assert str(HOST_ONLY) in said
    assert outside_host_only([IPv4Address(refused)]) == [IPv4Address(refused)]
    assert "startvm" not in {call[0] for call in calls}
