"""A bundle: a machine without any network brings a lab up from one file."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.machines.box import IMAGE
from tests.machines.sandbox import Sandbox

_Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def machine(sandbox: Sandbox) -> Iterator[_Run]:
    """Runs a script on a machine that has loopback only, no haproxy, and an unpacked bundle."""
    with tempfile.TemporaryDirectory(prefix="oid-", dir="/var/tmp") as directory:
        yield from _machine(sandbox, Path(directory))


def _machine(sandbox: Sandbox, directory: Path) -> Iterator[_Run]:
    clone = directory / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / "demos" / "own.yaml").write_text("title: a file that git does not know yet\n")
    bundle = directory / "openstackoid.tar"
    subprocess.run(
        [str(clone / "setup-env.py"), "bundle", str(bundle)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )

    def docker(*argv: str) -> subprocess.CompletedProcess[str]:
        return sandbox.run(["docker", *argv], cwd=directory)

    place = ["--network=none", f"--volume={directory}:/from:ro"]
    docker("run", "--detach", "--init", "--name=unconnected", *place, IMAGE, "sleep", "infinity")
    try:
        docker("exec", "unconnected", "apt-get", "purge", "--yes", "--autoremove", "haproxy")
        docker("exec", "unconnected", "tar", "-C", "/root", "-xf", "/from/openstackoid.tar")
        place = ["--workdir=/root/openstackoid", "unconnected", "sh", "-c"]
        yield lambda script: docker("exec", *place, script)
    finally:
        docker("rm", "--force", "unconnected")


@pytest.mark.usefixtures("docker_only")
def test_a_machine_without_network_comes_up_from_a_bundle(machine: _Run) -> None:
    up = machine("./setup-env.py up --offline -n 1 --hypervisor fake --no-attach")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "Installing Debian packages: haproxy" in up.stdout
    images = machine("./setup-env.py ssh InstanceOne -- openstack image list -f value -c Name")
    assert images.stdout == "cirros\n"
    assert machine("./setup-env.py destroy && ls -d .lab").returncode == 2
    assert machine("cat demos/own.yaml").returncode == 0

    again = machine("./setup-env.py bundle /tmp/second.tar")
    assert again.returncode == 1
    assert "error: only a clone of the repository can make a bundle: " in again.stderr
