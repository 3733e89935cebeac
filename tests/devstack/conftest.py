"""Two real DevStacks in a sandbox, cloned from a directory of bare mirrors."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.machines.conftest import clone, sandbox
from tests.machines.sandbox import Sandbox
from tests.machines.sandbox_owner import PROXY_ADDRESS

__all__ = ["clone", "sandbox"]

VARIABLE = "OPENSTACKOID_MIRRORS"
#: The OpenStack repositories that DevStack needs, including its own.
REPOSITORIES = (
    "devstack",
    "glance",
    "keystone",
    "neutron",
    "nova",
    "placement",
    "requirements",
)


@pytest.fixture(scope="session")
def mirrors() -> Path:
    """The directory of bare mirrors, which must be complete."""
    directory = Path(os.environ[VARIABLE]).resolve()
    places = [directory / "openstack" / f"{name}.git" for name in REPOSITORIES]
    missing = [str(place) for place in places if not (place / "HEAD").exists()]
    assert missing == [], f"{VARIABLE} lacks mirrors"
    return directory


@pytest.fixture(scope="session")
def git_base(mirrors: Path, sandbox: Sandbox) -> Iterator[str]:
    """The URL of the mirrors for machines in the sandbox: DevStack's GIT_BASE."""
    base = f"git://{PROXY_ADDRESS}"
    with tempfile.TemporaryDirectory(prefix="oid-git-", dir="/var/tmp") as name:
        note = Path(name) / "pid"
        serve = [f"--listen={PROXY_ADDRESS}", f"--base-path={mirrors}", "--export-all"]
        command = ["git", "daemon", *serve, f"--pid-file={note}"]
        with subprocess.Popen(sandbox.command(command, ROOT)) as daemon:
            ask = ["git", "ls-remote", f"{base}/openstack/devstack.git", "HEAD"]
            deadline = time.monotonic() + 10
            while sandbox.run(ask, ROOT).returncode != 0:
                assert daemon.poll() is None and time.monotonic() < deadline, "no git daemon"
                time.sleep(0.2)
            yield base
            sandbox.run(["kill", note.read_text().strip()], ROOT, check=True)
