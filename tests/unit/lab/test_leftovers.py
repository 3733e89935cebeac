"""What a real supervisord leaves when it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lab.supervision import Supervisor

CONFIGURATION = """\
[supervisord]
logfile = {root}/log
pidfile = {root}/pid
[unix_http_server]
file = {root}/socket
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:steady]
command = sh -c "sleep 1000 & wait"
[program:hasty]
command = sh -c "sleep 1.5; exit 1"
autostart = false
"""


class Supervised(Supervisor):
    """A supervisor with its own directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        super().__init__(root / "socket", root / "conf", root / "out")
        (root / "conf").write_text(CONFIGURATION.format(root=root))

    def kill(self) -> None:
        psutil.Process(int((self.root / "pid").read_text())).kill()

    def processes(self) -> set[int]:
        """All processes with its mark."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.root) in process.environ().get("SUPERVISOR_SERVER_URL", ""):
                    found.add(process.pid)
        return found


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    # Not pytest's tmp_path, which may be too long for sockets.
    root = Path(tempfile.mkdtemp(prefix="oid-", dir="/tmp"))
    supervisor = Supervised(root)
    yield supervisor
    supervisor.shutdown()
    supervisor.stop_leftovers()
    shutil.rmtree(root)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _start(supervisor: Supervised) -> set[int]:
    """Start it, and return its two processes."""
    supervisor.start(os.environ)
    _until(lambda: len(supervisor.processes()) == 2)
    return supervisor.processes()


def test_every_descendant_of_a_killed_supervisord_is_stopped(
    supervised: Supervised,
) -> None:
    left = _start(supervised)
    supervised.kill()
    _until(lambda: not supervised.running())
    assert supervised.processes() == left
    supervised.stop_leftovers()
    assert supervised.processes() == set()


def test_the_programs_of_a_supervisord_that_answers_are_not_leftovers(
    supervised: Supervised,
) -> None:
    running = _start(supervised)
    supervised.stop_leftovers()
    assert supervised.processes() == running


def test_a_fork_server_that_a_program_started_is_not_a_leftover(supervised: Supervised) -> None:
    marks = {"SUPERVISOR_SERVER_URL": f"unix://{supervised.root}/socket", "SPT_NOENV": "1"}
    server = subprocess.Popen(["sleep", "1000"], env={**os.environ, **marks})
    try:
        supervised.stop_leftovers()
        assert server.poll() is None
    finally:
        server.kill()
        server.wait()


def test_what_an_earlier_supervisord_left_is_stopped_beside_a_living_one(
    supervised: Supervised,
) -> None:
    left = _start(supervised)
    supervised.kill()
    _until(lambda: not supervised.running())
    supervised.start(os.environ)
    _until(lambda: len(supervised.processes()) == 4)
    ours = supervised.processes() - left
    supervised.stop_leftovers()
    assert supervised.processes() == ours


def test_a_supervisord_that_cannot_be_reached_is_stopped_with_its_programs(
    supervised: Supervised,
) -> None:
    _start(supervised)
    pid = int((supervised.root / "pid").read_text())
    (supervised.root / "socket").unlink()
    supervised.stop_leftovers()
    assert supervised.processes() == set()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_program_that_ends_again_and_again_never_counts_as_settled(
    supervised: Supervised,
) -> None:
    _start(supervised)
    supervised.ensure(["hasty"])
    _until(lambda: supervised.states()["hasty"] == "RUNNING")
    _until(lambda: supervised.settled() == {"steady"})
