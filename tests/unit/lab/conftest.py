"""A separate lab for the orchestrator's tests: real sshds and tmux, and a stand-in stack."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lab import processes
from lab.config import Lab, load
from lab.tmux import SOCKET_VARIABLE
from tests.conftest import end_tmux

PLACEHOLDER = Path(__file__).with_name("placeholder.py")


def eventually(fact: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether *fact* is true in time."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True)
class Sandbox:
    """A directory with a lab.yaml, and the command line for it."""

    root: Path
    network: int

    @property
    def state(self) -> Path:
        return self.root / ".lab"

    @property
    def socket(self) -> str:
        return self.root.name

    @property
    def environment(self) -> dict[str, str]:
        outer = {"OS_CLOUD": "outer", "PYTHONSTARTUP": "/outer", SOCKET_VARIABLE: self.socket}
        return {key: value for key, value in os.environ.items() if key != "TMUX"} | outer

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, str(PLACEHOLDER), str(self.root), *arguments]

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.argv(*arguments),
            env=self.environment,
            input=stdin,
            capture_output=True,
            check=False,
        )

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def error(self, *arguments: str, status: int = 1) -> str:
        """The one-line error of a command that has to fail."""
        done = self.run(*arguments)
        assert done.returncode == status, done.stdout.decode() + done.stderr.decode()
        *notes, last = done.stderr.decode().splitlines()
        assert not any("Traceback" in line for line in notes)
        return last

    def describe(self, text: str) -> None:
        (self.root / "lab.yaml").write_text(text)

    def lab(self) -> Lab:
        return load(self.root)

    def tmux(self, *arguments: str) -> str:
        argv = ["tmux", "-L", self.socket, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def processes(self) -> list[psutil.Process]:
        return processes.marked(self.state)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with made_sandbox() as made:
        yield made


@contextmanager
def made_sandbox() -> Iterator[Sandbox]:
    """A sandbox, which is removed afterwards with all its processes."""
    # Not pytest's tmp_path, which may be too long for sockets.
    root = Path(tempfile.mkdtemp(prefix="oid-", dir="/tmp"))
    one = Sandbox(root, random.randrange(100, 250))
    one.describe(
        f"instances:\n"
        f"  - {{name: InstanceOne, address: 127.{one.network}.1.1}}\n"
        f"  - {{name: InstanceTwo, address: 127.{one.network}.2.1}}\n"
    )
    yield one
    one.run("destroy")
    end_tmux(one.socket)
    processes.kill_all(one.state)
    shutil.rmtree(root)
