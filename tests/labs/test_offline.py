"""``up --offline`` in a network namespace that has loopback and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.providers.local import uv
from lab.tmux import SOCKET_VARIABLE
from lab.wheels import install
from tests.conftest import ROOT, clone, end_tmux

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")
UP = "./setup-env.py up -n 1 --hypervisor fake --offline --no-attach"
SOCKET = f"openstackoid-offline-{os.getpid()}"


@pytest.fixture(scope="module")
def repository() -> Iterator[Path]:
    """A fresh clone with its ``.venv``, on a machine whose cache has the wheels."""
    directory = Path(tempfile.mkdtemp(prefix="clone-"))
    found = clone(directory, "127.67.%d.1", "172.27.%d.0/24")
    for command in install.commands(uv(), ROOT, directory / "venv"):
        subprocess.run(command, check=True)
    subprocess.run([str(found / "setup-env.py"), "--help"], capture_output=True, check=True)
    yield found
    end_tmux(SOCKET)
    shutil.rmtree(directory)


def _without_network(
    repository: Path, script: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    unwanted = ("OS_", "UV_", "PIP_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", f"ip link set lo up\n{script}"],
        cwd=repository,
        env={**kept, SOCKET_VARIABLE: SOCKET, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_fresh_clone_comes_up_without_network(repository: Path) -> None:
    script = (
        f"trap './setup-env.py destroy' EXIT\n{UP} &&\n"
        "./setup-env.py ssh InstanceOne -- openstack image list -f value -c Name"
    )
    done = _without_network(repository, script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "cirros"
    assert not (repository / ".lab").exists()


def test_what_is_missing_is_named_before_anything_starts(repository: Path, tmp_path: Path) -> None:
    done = _without_network(repository, UP, UV_CACHE_DIR=str(tmp_path))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: --offline, and this machine lacks the wheel ")
    assert line.endswith(": run ./setup-env.py up without --offline once")

    description = repository / "lab.yaml"
    text = description.read_text()
    description.write_text(text.replace("  # url: https", "  url: https"))
    done = _without_network(repository, UP)
    description.write_text(text)
    assert "lacks the image https://download.cirros-cloud.net/" in done.stderr
    assert not (repository / ".lab").exists()


def test_without_an_environment_of_its_own_a_clone_says_so(tmp_path: Path) -> None:
    repository = clone(tmp_path, "127.67.%d.1", "172.27.%d.0/24")
    done = _without_network(
        repository, UP, UV_CACHE_DIR=str(tmp_path / "cache"), PATH=os.defpath + ":/usr/sbin:/sbin"
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --offline, and .venv cannot be made of what is here: ")
    assert "Retrying" not in done.stderr
