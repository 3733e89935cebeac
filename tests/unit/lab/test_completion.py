"""What a shell offers when a user presses the tabulator key: real shells on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cli import commands
from lab.completion import SHELLS, script
from lab.config import load
from tests.conftest import ROOT

INTERACTIVE = {
    "bash": ["bash", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
SWITCH_ON = {
    "bash": "source <(./setup-env.py completion bash)",
    "zsh": "autoload -Uz compinit; compinit -D; source <(./setup-env.py completion zsh)",
    "fish": "./setup-env.py completion fish | source",
}


class Terminal:
    """A terminal with an interactive shell."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def shows(self, text: str, seconds: float = 20) -> bool:
        """Whether *text* appears in time."""
        deadline = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < deadline:
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self.shown += os.read(self._descriptor, 65536).decode(errors="replace")
        return text in self.shown


@contextlib.contextmanager
def terminal(shell: str, directory: Path) -> Iterator[Terminal]:
    """An interactive *shell* in *directory*, with completion switched on."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.environ.update(TERM="xterm", HOME=str(directory))
        os.execvp(shell, INTERACTIVE[shell])
    try:
        one = Terminal(descriptor)
        one.type(f"{SWITCH_ON[shell]}\rprintf 'is %s\\n' on\r")
        assert one.shows("is on"), one.shown
        yield one
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(descriptor)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_instances_of_a_lab_that_does_not_run(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    # A program of this name, as a path, and a lab that was never up.
    (tmp_path / "setup-env.py").symlink_to(ROOT / "setup-env.py")
    names = load(ROOT).names
    with terminal(shell, tmp_path) as one:
        one.type("./setup-env.py ssh Inst\t\t\t")
        assert all(one.shows(name) for name in names), one.shown


def test_bash_completes_from_any_directory(tmp_path: Path) -> None:
    (tmp_path / "setup-env.py").symlink_to(ROOT / "setup-env.py")
    (tmp_path / "below").mkdir()
    with terminal("bash", tmp_path) as one:
        one.type("cd below\r../setup-env.py up --provider vag\t")
        assert one.shows("--provider vagrant"), one.shown


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_calls_what_the_user_types(shell: str) -> None:
    text = script(commands, shell)
    calls = [line for line in text.splitlines() if f"={shell}_complete" in line]
    assert len(calls) == 1
    assert "setup-env.py" not in calls[0]


@pytest.mark.parametrize("text", ["instances: 3\n", "{"])
def test_a_wrong_description_is_silent_while_a_user_types(text: str, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(text)
    asks = {"_SETUP_ENV_PY_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    environment = {**os.environ, **asks, "COMP_WORDS": "./setup-env.py ssh I"}
    code = f"import pathlib, lab.cli; lab.cli.main(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [str(ROOT / ".venv/bin/python"), "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
