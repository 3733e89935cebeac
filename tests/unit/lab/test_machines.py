"""How ssh reaches machines, and what the lab puts on them."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tomllib
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import hypervisors
from lab.config import Mirrors
from lab.providers import provision
from lab.providers.machines import SshEndpoint
from lab.providers.provision import Administrator
from lab.ssh import Remote, Result

ROOT = Path(__file__).resolve().parents[3]
KEYS = ("ssh-ed25519 AAAA", "ssh-rsa BBBB")


@pytest.mark.parametrize(("port", "place"), [(22, "192.0.2.7"), (2200, "[192.0.2.7]:2200")])
def test_known_hosts_name_an_unusual_port(port: int, place: str) -> None:
    endpoint = SshEndpoint("192.0.2.7", port, KEYS)
    assert endpoint.known_hosts() == f"{place} {KEYS[0]}\n{place} {KEYS[1]}\n"


def test_the_ssh_config_of_a_machine_is_strict_and_for_the_instances_user(tmp_path: Path) -> None:
    path = tmp_path / "config"
    endpoint = SshEndpoint("192.0.2.7", 2200, KEYS, proxy_command="ssh -W %h:%p jump")
    path.write_text(endpoint.ssh_config("InstanceOne", Path("/lab/provider")))
    shown = subprocess.run(
        ["ssh", "-F", str(path), "-G", "InstanceOne"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert set(shown) >= {
        "hostname 192.0.2.7",
        "port 2200",
        "user stack",
        "identityfile /lab/provider/key",
        "identitiesonly yes",
        "userknownhostsfile /lab/provider/known_hosts",
        "stricthostkeychecking true",
        "passwordauthentication no",
        "proxycommand ssh -W %h:%p jump",
    }


def test_the_source_for_a_machine_is_what_the_repository_holds_now() -> None:
    source = provision.Source.of(ROOT)
    with tarfile.open(fileobj=io.BytesIO(source.archive)) as archive:
        names = set(archive.getnames())
    assert {"pyproject.toml", "constraints.txt", "lab/cli.py", "devstack/plugin.sh"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".", "tests"))]


def test_a_machine_gets_the_licence_and_the_readme_that_a_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license-files"] == ["LICENSE"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    with tarfile.open(fileobj=io.BytesIO(provision.Source.of(ROOT).archive)) as archive:
        assert {*project["license-files"], project["readme"]["file"]} <= set(archive.getnames())


def test_a_change_of_the_source_changes_its_digest(tmp_path: Path) -> None:
    for part in ("openstackoid", "lab", "devstack"):
        (tmp_path / part).mkdir()
    for file in ("pyproject.toml", "constraints.txt", "README.org", "lab/a.py"):
        (tmp_path / file).write_text("one")
    before = provision.Source.of(tmp_path).digest
    assert provision.Source.of(tmp_path).digest == before
    (tmp_path / "lab/a.py").write_text("two")
    assert provision.Source.of(tmp_path).digest != before


def test_mirrors_reach_pip_and_uv_of_a_machine_by_their_variables() -> None:
    mirrors = Mirrors.model_validate(
        {"pip": "http://mirror.test/simple", "proxy": "http://proxy.test:3128"}
    )
    found = provision.environment(mirrors)
    assert found["UV_DEFAULT_INDEX"] == found["PIP_INDEX_URL"] == "http://mirror.test/simple"
    assert found["https_proxy"] == found["HTTPS_PROXY"] == "http://proxy.test:3128"
    assert "https_proxy" not in provision.environment(Mirrors())


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory in PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(programs: Path, name: str, text: str = "exit 0") -> None:
    (programs / name).write_text(f"#!/bin/sh\n{text}\n")
    (programs / name).chmod(0o755)


def test_a_hypervisor_that_answers_is_found_and_one_that_fails_is_not(programs: Path) -> None:
    put(programs, "vagrant")
    put(programs, "docker", "exit 1")
    assert hypervisors.find("docker") == hypervisors.Finding(
        False, "Vagrant is installed, but docker does not work"
    )
    put(programs, "docker")
    assert hypervisors.find("docker").usable
    assert not hypervisors.find("lxc").usable


def test_a_hypervisor_without_its_device_does_not_work(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(programs, "VBoxManage")
    put(programs, "virsh")
    device = programs / "vboxdrv"
    monkeypatch.setitem(hypervisors._DEVICES, "virtualbox", device)
    monkeypatch.setitem(hypervisors._DEVICES, "libvirt", device)
    assert hypervisors.works("libvirt", "qemu")
    assert not hypervisors.works("libvirt", "kvm")
    assert not hypervisors.works("libvirt")
    assert not hypervisors.works("virtualbox")
    device.touch()
    assert hypervisors.works("virtualbox")


def test_addresses_that_virtualbox_refuses_are_found(tmp_path: Path) -> None:
    addresses = [IPv4Address(f"192.168.{n}.11") for n in (56, 63, 64)]
    settings = tmp_path / "networks.conf"
    assert hypervisors.outside_host_only(addresses, settings) == addresses[2:]
    settings.write_text("# * 192.168.0.0/16\n* 10.0.0.0/8 192.168.64.0/24\n* 2001::/64\n")
    assert hypervisors.outside_host_only(addresses, settings) == addresses[:2]


class _Everything(Administrator):
    """Finds everything, may do everything, and records its commands."""

    def __init__(self) -> None:
        super().__init__(Remote(Path("/nowhere"), "InstanceOne"))
        self.told: list[list[str]] = []

    def run(
        self,
        argv: Sequence[str | Path],
        stdin: str | None = None,
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
    ) -> Result:
        self.told.append([str(word) for word in argv])
        return Result(0, "", "")


def test_what_an_instance_keeps_on_a_machine_is_closed_to_other_users() -> None:
    administrator = _Everything()
    provision._make_user(administrator, "InstanceOne", KEYS[0], may_become_root=False)
    for directory in (".ssh", "instance", "shared"):
        made = ["install", "-d", "-m", "0700", "-o", "stack", f"/opt/stack/{directory}"]
        assert made in administrator.told
    assert ["chmod", "0755", "/opt/stack"] in administrator.told
