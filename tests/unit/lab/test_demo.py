"""``demo`` with real sshds, shells and tmux: what is typed, what ends it, and what it leaves."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.unit.lab.conftest import Sandbox, eventually, made_sandbox

PLAIN = """
title: A title
steps:
  - say: It's free; see
  - {in: InstanceTwo, type: "echo made > file; echo $((6 * 7));", shows: ^42$}
  - in: InstanceOne
    type: |
      echo several \\
        lines; (exit 3)
    status: 3
    shows: ^several lines$
finally:
  - {in: InstanceTwo, run: rm -f file}
"""


def panes(sandbox: Sandbox) -> str:
    """Everything about the panes that a demo must not change."""
    form = "#{pane_id} #{pane_pid} #{pane_dead} #{pane_pipe} #{@instance} #{window_layout}"
    return sandbox.tmux("list-panes", "-s", "-t", "openstackoid", "-F", form)


def screen(sandbox: Sandbox, index: int, *, history: bool = True) -> str:
    above = ["-S", "-200"] if history else []
    return sandbox.tmux("capture-pane", "-p", "-J", *above, "-t", f"openstackoid:0.{index}")


def scenario(sandbox: Sandbox, text: str) -> None:
    (sandbox.root / "demos").mkdir(exist_ok=True)
    (sandbox.root / "demos/mine.yaml").write_text(text)


def has_prompt(sandbox: Sandbox, index: int) -> bool:
    return screen(sandbox, index).rstrip().endswith("~$")


def is_clear(sandbox: Sandbox, index: int) -> bool:
    prompt = f"stack@Instance{('One', 'Two')[index]}:~$"
    return screen(sandbox, index, history=False).strip() == prompt


@pytest.fixture(scope="module")
def lab() -> Iterator[Sandbox]:
    with made_sandbox() as made:
        made.ok("up")
        yield made


@pytest.fixture
def up(lab: Sandbox) -> Sandbox:
    """The lab of all tests in this file, with nothing but a prompt in each pane."""
    for index in (0, 1):
        pane = f"openstackoid:0.{index}"
        assert eventually(partial(has_prompt, lab, index))
        lab.tmux("send-keys", "-t", pane, "C-u", "clear", "Enter")
        assert eventually(partial(is_clear, lab, index))
        lab.tmux("clear-history", "-t", pane)
    return lab


@pytest.mark.parametrize("speed", ["0", "10"])
def test_a_demo_types_its_steps_and_leaves_the_lab_as_it_was(up: Sandbox, speed: str) -> None:
    scenario(up, PLAIN)
    before = panes(up)
    assert "A title" in up.ok("demo", "mine", "--speed", speed)
    assert panes(up) == before
    one, two = (screen(up, index).rstrip().splitlines() for index in (0, 1))
    assert two == [
        "stack@InstanceTwo:~$ # It's free; see",
        "stack@InstanceTwo:~$ echo made > file; echo $((6 * 7));",
        "42",
        "stack@InstanceTwo:~$",
    ]
    assert one[-4:] == [
        "stack@InstanceOne:~$ echo several \\",
        ">   lines; (exit 3)",
        "several lines",
        "stack@InstanceOne:~$",
    ]
    assert not (up.state / "InstanceTwo/home/file").exists()


def test_a_demo_types_on_this_machine_in_a_pane_of_its_own(up: Sandbox) -> None:
    scenario(
        up,
        "title: t\nsteps:\n- say: Look around.\n"
        f"- {{in: here, type: pwd; touch made; (exit 4), status: 4, shows: '^{up.root}$'}}\n"
        "- {in: InstanceOne, type: echo elsewhere}\nfinally: [{in: here, run: rm made}]\n",
    )
    before = panes(up)
    said = up.ok("demo", "mine", "--speed", "0")
    assert "here: # Look around.\nhere: pwd; touch made; (exit 4)\n" in said
    assert panes(up) == before
    assert not (up.root / "made").exists()
    assert "pwd" not in screen(up, 0)

    scenario(up, "title: t\nsteps: [{say: x}]\nfinally: [{in: here, run: echo no >&2; false}]\n")
    line = up.error("demo", "mine", "--speed", "0")
    assert line.endswith("did not remove what was made: it ended with status 1, and said: no")


def test_what_a_demo_types_on_this_machine_may_change_the_lab(up: Sandbox) -> None:
    """Otherwise it would wait for the end of the demo."""
    typed = shlex.join(up.argv("up", "--no-attach"))
    scenario(up, f"title: t\nsteps: [{{in: here, type: {typed}, shows: ✔}}]\n")
    up.ok("demo", "mine", "--speed", "0")


def test_on_a_terminal_a_demo_says_how_to_watch_and_waits_for_keys(up: Sandbox) -> None:
    scenario(up, "title: t\nsteps: [{say: one}, {say: two}]\n")
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    said = b""

    def says(words: bytes, times: int) -> bool:
        nonlocal said
        with suppress(BlockingIOError):
            said += os.read(ours, 1024)
        return said.count(words) == times

    def press() -> None:
        # Keys of before are discarded when it begins to wait for one.
        assert eventually(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON)
        os.write(ours, b"\r")

    playing = subprocess.Popen(
        up.argv("demo", "mine", "--speed", "0", "--step"),
        env=up.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    try:
        assert eventually(lambda: says(b"next: any key", 1))
        assert b"./setup-env.py attach" in said
        assert "# one" not in screen(up, 0)
        press()
        assert eventually(lambda: says(b"next: any key", 2))
        assert "# one" in screen(up, 0)
        assert "# two" not in screen(up, 0)
        press()
        assert playing.wait(20) == 0
        assert "# two" in screen(up, 0)
    finally:
        playing.kill()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("type: echo a", "`echo a`: its output does not show '^b$'; it ended with: a"),
        ("type: echo b; (exit 2)", "it ended with status 2 instead of 0, and said: b"),
    ],
)
def test_a_step_with_another_end_is_named_and_the_rest_is_removed(
    up: Sandbox, step: str, said: str
) -> None:
    scenario(
        up,
        "title: t\nsteps:\n- {in: InstanceOne, type: echo x > file}\n"
        f"- in: InstanceOne\n  {step}\n  shows: ^b$\n"
        "- {in: InstanceOne, type: touch never}\nfinally: [{in: InstanceOne, run: rm file}]\n",
    )
    before = panes(up)
    line = up.error("demo", "mine", "--speed", "0")
    assert line.startswith("error: demos/mine.yaml: step 2 in InstanceOne, `echo ")
    assert said in line
    assert panes(up) == before
    assert not {"file", "never"} & {one.name for one in (up.state / "InstanceOne/home").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_ends_its_command_and_removes_what_it_made(
    up: Sandbox, number: signal.Signals
) -> None:
    scenario(
        up,
        "title: t\nsteps: [{in: InstanceOne, type: touch file; sleep 600}]\n"
        "finally: [{in: InstanceOne, run: rm file}]\n",
    )
    before = panes(up)
    running = subprocess.Popen(up.argv("demo", "mine", "--speed", "0"), env=up.environment)
    made = up.state / "InstanceOne/home/file"
    try:
        assert eventually(made.exists)
        running.send_signal(number)
        assert running.wait(60) == 130
    finally:
        running.kill()
    assert not made.exists()
    assert panes(up) == before
    assert eventually(lambda: has_prompt(up, 0))
    assert "sleep" not in [one.name() for one in up.processes() if "600" in one.cmdline()]


def test_a_removal_that_fails_is_an_error(up: Sandbox) -> None:
    scenario(
        up,
        "title: t\nsteps: [{say: x}]\nfinally: [{in: InstanceTwo, run: echo no >&2; false}]\n",
    )
    line = up.error("demo", "mine", "--speed", "0")
    assert "`echo no >&2; false` did not remove what was made" in line


def test_a_pane_that_is_in_use_is_left_alone(up: Sandbox) -> None:
    scenario(up, PLAIN)
    assert eventually(lambda: has_prompt(up, 0) and has_prompt(up, 1))
    up.tmux("send-keys", "-t", "openstackoid:0.0", "rm -r half-ty")
    assert eventually(lambda: "half-ty" in screen(up, 0))
    before = panes(up)
    line = up.error("demo", "mine", "--speed", "0")
    assert line.startswith("error: the pane of InstanceOne is not at its prompt")
    assert panes(up) == before
    assert "rm -r half-ty" in screen(up, 0)
    assert "42" not in screen(up, 1)
    up.tmux("send-keys", "-t", "openstackoid:0.0", "C-c")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "error: unknown scenario 'nothing'; known: mine"),
        (["mine", "--step"], "error: --step waits for a key: it needs a terminal"),
        (["mine"], "error: InstanceOne is down: run ./setup-env.py up InstanceOne"),
    ],
)
def test_an_impossible_demo_gets_one_line(
    sandbox: Sandbox, arguments: list[str], said: str
) -> None:
    scenario(sandbox, "title: t\nsteps: [{in: InstanceOne, type: x}]")
    assert sandbox.error("demo", *arguments) == said
    assert not sandbox.state.exists()


def test_an_instance_that_the_lab_lacks_is_named_with_its_place(sandbox: Sandbox) -> None:
    scenario(sandbox, "title: t\nsteps: [{in: Elsewhere, type: x}]")
    assert sandbox.error("demo", "mine") == (
        "error: demos/mine.yaml: steps.0.in: 'Elsewhere' is not an instance; "
        "known: InstanceOne, InstanceTwo"
    )


def test_the_list_has_names_and_titles(sandbox: Sandbox) -> None:
    scenario(sandbox, PLAIN)
    assert sandbox.ok("demo", "--list").split() == ["mine", "A", "title"]


def test_a_recording_is_an_asciicast_of_the_whole_window(up: Sandbox, tmp_path: Path) -> None:
    scenario(up, PLAIN)
    before = panes(up)
    file = tmp_path / "demo.cast"
    up.ok("demo", "mine", "--speed", "10", "--record", str(file))
    assert panes(up) == before
    header, *events = map(json.loads, file.read_text().splitlines())
    assert header["version"] == 2
    assert header["title"] == "A title"
    assert (header["width"], header["height"]) == (160, 51)
    times = [time for time, _, _ in events]
    assert times == sorted(times)
    assert {kind for _, kind, _ in events} == {"o"}
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(text for _, _, text in events))
    assert "several lines" in shown
    assert "InstanceOne" in shown
    assert "InstanceTwo" in shown
    assert eventually(lambda: up.tmux("list-clients") == "")
