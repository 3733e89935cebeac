"""Shared by all tests: the repository, and a running lab for the tests that need one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.config import Lab, load
from lab.processes import INSTANCE_MARK, LAB_MARK
from lab.providers import provider
from lab.providers.base import Host
from lab.tmux import SOCKET_VARIABLE

ROOT = Path(__file__).resolve().parent.parent


#: Tests that need a lab, sshd, tmux, machines or a package index.
_SLOW = (
    "devstack",
    "infra",
    "integration",
    "labs",
    "machines",
    "unit/test_distributions.py",
    "unit/lab/test_bootstrap.py",
    "unit/lab/test_cli.py",
    "unit/lab/test_demo.py",
    "unit/lab/test_hosts.py",
    "unit/lab/test_leftovers.py",
    "unit/lab/test_snapshots.py",
    "unit/lab/test_ssh.py",
    "unit/lab/test_tmux.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The hypervisor of the machines in tests/machines; CI has time for containers only."""
    group = parser.getgroup("openstackoid")
    group.addoption("--vagrant-provider", choices=("docker", "libvirt"), default="docker")
    group.addoption(
        "--vagrant-driver",
        choices=("kvm", "qemu"),
        default="qemu",
        help="libvirt's driver: qemu emulates the machines, which takes an hour",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Generate only a tenth of the proxy's requests if only fast tests were chosen.

    All of them take more than a minute, most of the time of the fast tests.
    """
    if config.getoption("markexpr") == "fast":
        os.environ.setdefault("OPENSTACKOID_PROXY_CASES", "1000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the fast tests, for ``./setup-env.py test -m fast``."""
    slow = tuple(str(ROOT / "tests" / name) for name in _SLOW)
    for item in items:
        if not str(item.path).startswith(slow):
            item.add_marker("fast")


@dataclass(frozen=True)
class RunningLab:
    """A lab that is completely up; its tmux session is on *tmux_socket*."""

    config: Lab
    tmux_socket: str

    @property
    def ssh_config(self) -> Path:
        return self.config.state / "ssh_config"

    @property
    def environment(self) -> dict[str, str]:
        """The environment for ``setup-env.py``, without variables of another lab or cloud."""
        return _environment(self.tmux_socket)

    def host(self, name: str) -> Host:
        """The host of the instance *name*."""
        return next(host for host in provider(self.config).hosts() if host.name == name)

    def setup_env(
        self, *arguments: str, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``./setup-env.py ARGUMENTS…``."""
        return _setup_env(
            *arguments, socket=self.tmux_socket, stdin=stdin, check=check, root=self.config.root
        )

    def ssh(
        self, name: str, *argv: str, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the command *argv* in the instance *name*."""
        return self.setup_env("ssh", name, "--", *argv, stdin=stdin, check=check)


@pytest.fixture(scope="session")
def lab() -> Iterator[RunningLab]:
    """The lab, completely up; afterwards, a new lab is destroyed, or its former state restored."""
    socket = f"openstackoid-test-{os.getpid()}"
    existed = (ROOT / ".lab").exists()
    up_before = _names_up(socket) if existed else set()
    try:
        _setup_env("up", "--no-attach", socket=socket)
        yield RunningLab(load(ROOT), socket)
    finally:
        down_before = _names_up(socket) - up_before
        if not existed:
            _setup_env("destroy", socket=socket)
        elif down_before:
            _setup_env("halt", *sorted(down_before), socket=socket)
        end_tmux(socket)


def clone(directory: Path, address: str, external_range: str) -> Path:
    """A clone of this repository in *directory*, whose lab may run beside another one.

    *address* and *external_range* have ``%d`` for an instance's number: ``127.66.%d.1``.
    """
    repository = directory / "openstackoid"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(repository)], check=True)
    description = repository / "lab.yaml"
    text = description.read_text().replace("127.0.%d.1", address)
    description.write_text(text.replace("172.24.%d.0/24", external_range))
    return repository


@contextmanager
def lab_of(repository: Path, *options: str) -> Iterator[RunningLab]:
    """The lab of a *repository* that has none yet, up with *options*; afterwards, it is destroyed.

    The clone installs everything for itself.
    """
    socket = f"openstackoid-test-{os.getpid()}-{repository.parent.name}"
    try:
        _setup_env("up", "--no-attach", *options, socket=socket, root=repository)
        yield RunningLab(load(repository), socket)
    finally:
        _setup_env("destroy", socket=socket, root=repository)
        end_tmux(socket)


def end_tmux(socket: str) -> None:
    """End the tmux server on *socket*; tmux itself leaves the socket's file."""
    subprocess.run(["tmux", "-L", socket, "kill-server"], capture_output=True, check=False)
    directory = Path(os.environ.get("TMUX_TMPDIR", "/tmp"), f"tmux-{os.getuid()}")
    (directory / socket).unlink(missing_ok=True)


def _setup_env(
    *arguments: str, socket: str, stdin: str = "", check: bool = True, root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(root / "setup-env.py"), *arguments],
        env=_environment(socket),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        pytest.fail(
            f"./setup-env.py {' '.join(arguments)} ended with status {done.returncode}:\n"
            f"{done.stdout}{done.stderr}",
            pytrace=False,
        )
    return done


def _environment(socket: str) -> dict[str, str]:
    unwanted = ("OS_", LAB_MARK, INSTANCE_MARK)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {**environment, SOCKET_VARIABLE: socket}


def _names_up(socket: str) -> set[str]:
    status: dict[str, Any] = json.loads(_setup_env("status", "--json", socket=socket).stdout)
    return {one["name"] for one in status["instances"] if one["up"]}
