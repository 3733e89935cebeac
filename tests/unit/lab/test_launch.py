"""What a fork server inherits from whoever starts it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lab.wheels import launch


def test_a_fork_server_that_a_launcher_starts_can_wait_for_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "found"

    def execve(*_: object) -> None:
        draft = tmp_path / "draft"
        draft.write_text(signal.getsignal(signal.SIGCHLD).name)  # type: ignore[union-attr]
        draft.rename(found)

    monkeypatch.setattr(os, "execve", execve)
    # Launchers do.
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        launch.spawn(str(tmp_path), "nova")
    finally:
        signal.signal(signal.SIGCHLD, before)
    deadline = time.monotonic() + 20
    while not found.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found.read_text() == "SIG_DFL"
