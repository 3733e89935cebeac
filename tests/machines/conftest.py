"""A sandbox for real Vagrant machines, and a clone of the repository whose lab uses them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import apt
from lab.errors import LabError
from lab.tmux import SOCKET_VARIABLE
from tests.conftest import ROOT, end_tmux
from tests.machines import PACKAGES
from tests.machines.box import IMAGE
from tests.machines.sandbox import PROXY, Sandbox


@dataclass(frozen=True)
class Clone:
    """A clone of the repository in *root*, used from within *sandbox*."""

    sandbox: Sandbox
    root: Path

    @property
    def socket(self) -> str:
        """The name of the clone's own tmux server."""
        return self.root.parent.name

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command *argv* in the clone."""
        done = self.sandbox.run(argv, cwd=self.root, env={SOCKET_VARIABLE: self.socket})
        if check and done.returncode != 0:
            words = " ".join(argv)
            pytest.fail(f"{words}: {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    def setup_env(self, *arguments: str) -> str:
        """The output of ``./setup-env.py ARGUMENTS…``, which has to succeed."""
        return self.run("./setup-env.py", *arguments).stdout

    def error(self, *arguments: str) -> str:
        """The last line of ``./setup-env.py ARGUMENTS…``, which has to fail."""
        done = self.run("./setup-env.py", *arguments, check=False)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    def describe(self, **sections: Any) -> None:  # noqa: ANN401 - any YAML
        """Replace *sections* of lab.yaml."""
        path = self.root / "lab.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))


@pytest.fixture(scope="session")
def docker_only(request: pytest.FixtureRequest) -> None:
    """Skips a test that is about Docker's machines if the machines are others."""
    if request.config.getoption("--vagrant-provider") != "docker":
        pytest.skip("this test needs Docker's machines")


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The sandbox of the machines; if there cannot be one, the tests are skipped."""
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("the test machines need namespaces of their own, which only root may make")
    hypervisor: str = request.config.getoption("--vagrant-provider")
    try:
        apt.ensure(PACKAGES[hypervisor], print)
    except LabError as error:
        pytest.fail(str(error), pytrace=False)
    with Sandbox(hypervisor=hypervisor) as made:
        yield made


@pytest.fixture(scope="session")
def clone(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Callable[[], Clone]]:
    """Makes clones whose machines download through the sandbox's proxy."""
    driver = request.config.getoption("--vagrant-driver")
    made: list[Clone] = []

    def make() -> Clone:
        root = Path(tempfile.mkdtemp(prefix="oid-", dir="/var/tmp")) / "lab"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
        one = Clone(sandbox, root)
        machines = {"box": IMAGE, "cpus": 2, "memory": 4096, "provider": sandbox.hypervisor}
        if sandbox.hypervisor == "libvirt":
            machines["driver"] = driver
        one.describe(provider="vagrant", vagrant=machines, mirrors={"proxy": PROXY})
        made.append(one)
        return one

    yield make
    for one in made:
        one.run("./setup-env.py", "destroy", check=False)
        end_tmux(one.socket)
        shutil.rmtree(one.root.parent)
