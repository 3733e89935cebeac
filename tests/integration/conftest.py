"""The instances of the running lab, as used from their shells."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from lab import stacks
from openstackoid.proxy.log import LogLine, parse_log_line
from tests.conftest import ROOT, RunningLab


@dataclass(eq=False)
class Shell:
    """A login in the instance *name*."""

    lab: RunningLab
    name: str

    def run(self, *argv: str) -> str:
        """The output of the command *argv*, which has to succeed."""
        return self.lab.ssh(self.name, *argv).stdout

    def openstack(self, line: str) -> str:
        """The output of the ``openstack`` command *line*, which has to succeed."""
        return self.run("openstack", *shlex.split(line)).strip()

    def json(self, line: str) -> Any:  # noqa: ANN401 - depends on the command
        """The answer of an ``openstack`` command, as data."""
        return json.loads(self.openstack(f"{line} -f json"))

    def sql(self, statement: str) -> list[list[str]]:
        """Rows of the instance's own database."""
        client = ["mariadb", f"--socket={self.directory / 'run' / 'mariadb.sock'}"]
        if self._is_devstack:
            client = ["mysql"]
        rows = self.run(*client, "-Ne", statement)
        return [row.split("\t") for row in rows.splitlines()]

    @property
    def cell(self) -> str:
        """The database of the cell with the servers."""
        return "nova_cell1" if self._is_devstack else "nova"

    @property
    def _is_devstack(self) -> bool:
        return self.lab.config.stack == "devstack"

    @cached_property
    def directory(self) -> Path:
        return self.lab.host(self.name).directory

    @cached_property
    def image(self) -> str:
        """The ID of the instance's own image."""
        return self.openstack("image show cirros -f value -c id")

    def user(self, home: Shell) -> str:
        """The ID of the user of this instance as which a shell in *home* logs in here."""
        member = stacks.stack_class(self.lab.config.stack).member
        name = "admin" if home is self else member
        return self.sql(f"SELECT user_id FROM keystone.local_user WHERE name = '{name}'")[0][0]

    def pid(self, program: str) -> int:
        """The process of *program*; 0 while it does not run."""
        client = ["supervisorctl", "-c", str(self.directory / "etc" / "supervisord.conf"), "pid"]
        return int(self.lab.ssh(self.name, *client, program, check=False).stdout)

    def proxy_log(self, since: int = 0) -> list[LogLine]:
        """The requests in the proxy's log, from the line *since* on."""
        proxy = "openstackoid-proxy" if self._is_devstack else "haproxy"
        lines = self.lab.setup_env("logs", self.name, proxy).stdout.splitlines()
        return list(filter(None, map(parse_log_line, lines)))[since:]


@pytest.fixture(scope="session")
def shell(lab: RunningLab) -> Callable[[str], Shell]:
    """Returns the shell of an instance, the same one each time."""
    shells = {name: Shell(lab, name) for name in lab.config.names}
    return shells.__getitem__


@pytest.fixture(scope="session")
def one(shell: Callable[[str], Shell]) -> Shell:
    return shell("InstanceOne")


@pytest.fixture(scope="session")
def two(shell: Callable[[str], Shell]) -> Shell:
    return shell("InstanceTwo")


@pytest.fixture
def hung(two: Shell) -> Iterator[None]:
    """InstanceTwo's proxy takes connections and does not answer."""
    workers = subprocess.run(
        ["pgrep", "-P", str(two.pid("haproxy"))], capture_output=True, text=True, check=True
    ).stdout.split()
    for worker in workers:
        os.kill(int(worker), signal.SIGSTOP)
    time.sleep(3)  # Until InstanceOne's health check has seen it.
    try:
        yield
    finally:
        for worker in workers:
            os.kill(int(worker), signal.SIGCONT)
        time.sleep(2)


@pytest.fixture(scope="session")
def stock_openstack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``openstack`` command of a virtual environment without this project."""
    venv = tmp_path_factory.mktemp("stock") / "venv"
    uv = [str(Path(sys.prefix) / "bin" / "uv")]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    install = ["pip", "install", "--quiet", "--python", str(venv / "bin" / "python")]
    constraints = ["--constraints", str(ROOT / "constraints.txt")]
    subprocess.run([*uv, *install, *constraints, "python-openstackclient"], check=True)
    return venv / "bin" / "openstack"
