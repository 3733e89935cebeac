"""``demo``: play a scenario into the panes of the lab, as a person would type it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from libtmux import Pane
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from lab import tmux
from lab.config import first_problem, read_mapping
from lab.errors import LabError
from lab.parallel import for_each
from lab.processes import LOCK_HOLDER
from lab.providers.login_shell import bashrc, prompt
from lab.recording import recorded

if TYPE_CHECKING:
    from lab.lifecycle import Lifecycle

#: The directory of the scenarios, in the repository.
DIRECTORY = "demos"
#: Stands for this machine where a scenario names an instance.
HERE = "here"
#: The scenario that is played if none is named.
DEFAULT = "readme"

#: Characters that are typed in a second, and seconds between two steps, at speed 1.
_RATE, _PAUSE = 12, 1.5
#: Seconds until a shell has its prompt or starts a command, and until a command has ended.
_START, _END = 30.0, 300.0
_POLL = 0.05
# The shell's marks: C before a command's output, D;STATUS before the next prompt.
_MARK = re.compile(rb"\x1b\]133;([CD])(?:;(\d+))?\x07")
# Colours and other controls of a terminal.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\r")


def _typeable(text: str) -> str:
    if not text.strip() or not text.replace("\n", "").isprintable():
        raise ValueError("it has to have characters that a person types")
    return text.strip("\n")


_Text = Annotated[str, AfterValidator(_typeable)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Part):
    """A comment to *say*, or a command to *type* in the pane of an instance, or :data:`HERE`.

    The command has to end with *status*, and its output has to match *shows*. A step that *needs*
    guests is left out if servers are no real ones. A comment is typed where the next command is.
    """

    where: str | None = Field(default=None, alias="in")
    say: _Text | None = None
    text: _Text | None = Field(default=None, alias="type")
    shows: re.Pattern[str] | None = None
    status: int = 0
    needs: Literal["guests"] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Step:
        if (self.say is None) == (self.text is None):
            raise ValueError("a step has either `say` or `type`")
        if self.text and not self.where:
            raise ValueError("`type` needs `in`, the name of an instance")
        if self.say and (self.shows or self.status):
            raise ValueError("`shows` and `status` need `type`")
        return self


class Removal(_Part):
    """A command that removes what the steps made in an instance, or :data:`HERE`.

    It has to succeed if they made nothing.
    """

    where: str = Field(alias="in")
    run: _Text


class Scenario(_Part):
    """A demo: its steps, and what removes all that they made, however they end."""

    title: Annotated[str, Field(min_length=1)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    removals: tuple[Removal, ...] = Field(default=(), alias="finally")

    @property
    def instances(self) -> Mapping[str, str]:
        """The instances that it uses, and the place in the file that names each of them first."""
        return {name: place for name, place in self._places.items() if name != HERE}

    @property
    def is_here(self) -> bool:
        """Whether something is typed on this machine."""
        return any(one.where == HERE for one in self.steps)

    @property
    def _places(self) -> Mapping[str, str]:
        steps = [(f"steps.{n}.in", one.where) for n, one in enumerate(self.steps)]
        removals = [(f"finally.{n}.in", one.where) for n, one in enumerate(self.removals)]
        return {name: place for place, name in reversed([*steps, *removals]) if name}

    def place(self, index: int) -> str:
        """Where the step *index* is typed: an instance, :data:`HERE`, or "" for any pane."""
        following = [one.where for one in self.steps[index:] if one.where]
        return (following or [one.where for one in self.steps if one.where] or [""])[0] or ""


def names(root: Path) -> list[str]:
    """The names of the scenarios in the repository *root*."""
    return sorted(path.stem for path in (root / DIRECTORY).glob("*.yaml"))


def load(root: Path, name: str) -> Scenario:
    """The scenario *name* of the repository *root*.

    :raises LabError: when there is none, or it is wrong; it names the place.
    """
    if name not in names(root):
        known = ", ".join(names(root)) or f"none in {root / DIRECTORY}"
        raise LabError(f"unknown scenario {name!r}; known: {known}")
    file = f"{DIRECTORY}/{name}.yaml"
    raw = read_mapping(root / file, file, Scenario)
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        raise LabError(f"{file}: {first_problem(error, Scenario)}") from error


@dataclass(frozen=True)
class Manner:
    """How to play: *speed* as a factor, 0 for at once, and *pause*, which is called before a step.

    *record* is the file for a recording.
    """

    speed: float = 1.0
    pause: Callable[[], None] = lambda: None
    record: Path | None = None

    def wait(self, seconds: float) -> None:
        """Wait so long at speed 1."""
        if self.speed:
            time.sleep(seconds / self.speed)


def play(lifecycle: Lifecycle, name: str, manner: Manner, say: Callable[[str], None]) -> None:
    """Play the scenario *name*, and remove what it made; *say* gets a line for each step.

    :raises LabError: when a step does not end as the scenario says, or something stays.
    """
    from lab.lifecycle import locked  # noqa: PLC0415 - it imports most of the lab

    lab = lifecycle.lab
    scenario = load(lab.root, name)
    for instance, place in scenario.instances.items():
        if instance not in lab.names:
            known = ", ".join(lab.names)
            raise LabError(
                f"{DIRECTORY}/{name}.yaml: {place}: {instance!r} is not an instance; known: {known}"
            )
        lifecycle.require_up(instance)
    lifecycle.require_hosts()
    with ExitStack() as stack:
        stack.enter_context(locked(lab.state, "demo"))
        lifecycle.show()
        panes = tmux.instance_panes()
        used = list(scenario.instances) or list(panes)[:1]
        directory = tempfile.TemporaryDirectory(prefix="demo-", dir=lab.state)
        heard = Path(stack.enter_context(directory))
        shells = {
            one: stack.enter_context(_shell(one, prompt(one), panes[one], heard / one))
            for one in used
        }
        if scenario.is_here:
            shells[HERE] = stack.enter_context(_shell_here(lab.root, heard))
        if lifecycle.stack.has_traces:
            command = "./setup-env.py trace --follow"
            stack.enter_context(
                tmux.pane_below("who served that", command, lab.root, tidies_up=True)
            )
        if manner.record:
            argv, *size = tmux.watcher()
            stack.enter_context(recorded(manner.record, scenario.title, argv, (size[0], size[1])))
        say(scenario.title)
        with _removed_at_the_end(lifecycle, scenario, shells, say):
            for number, step in enumerate(scenario.steps, 1):
                if step.needs == "guests" and not lab.has_guests:
                    continue
                manner.pause()
                shell = shells[scenario.place(number - 1) or used[0]]
                say(f"{shell.name}: {step.text or f'# {step.say}'}")
                try:
                    _play_step(step, shell, manner)
                except LabError as error:
                    words = " ".join(f"{step.text or step.say}".split())
                    raise LabError(
                        f"{DIRECTORY}/{name}.yaml: step {number} in {shell.name}, `{words}`: "
                        f"{error}"
                    ) from error
                manner.wait(_PAUSE)


@contextmanager
def _removed_at_the_end(
    lifecycle: Lifecycle,
    scenario: Scenario,
    shells: Mapping[str, _Shell],
    say: Callable[[str], None],
) -> Iterator[None]:
    """End what still runs in *shells*, and remove what was made."""
    completed = False
    try:
        yield
        completed = True
    finally:
        for shell in shells.values():
            shell.interrupt()
        if scenario.removals:
            say("Removing what was made …")
        try:
            _remove(lifecycle, scenario)
        except LabError as error:
            if completed:
                raise
            # The other error is the one to end with.
            say(str(error))


def _remove(lifecycle: Lifecycle, scenario: Scenario) -> None:
    """Run the removals of *scenario*: in their order in an instance, and in all side by side.

    :raises LabError: naming those that fail.
    """
    hosts = {host.name: host for host in lifecycle.hosts_up()}

    def run(name: str, argv: list[str]) -> None:
        if name == HERE:
            done = subprocess.run(
                argv,
                cwd=lifecycle.lab.root,
                env={**os.environ, LOCK_HOLDER: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                last = (done.stderr.splitlines() or ["nothing"])[-1]
                raise LabError(f"it ended with status {done.returncode}, and said: {last}")
        else:
            lifecycle.stack.connect(hosts[name]).run(argv)

    def remove(name: str) -> None:
        for one in scenario.removals:
            if one.where != name:
                continue
            try:
                run(name, ["bash", "-o", "pipefail", "-c", one.run])
            except (KeyError, LabError) as error:
                raise LabError(f"`{one.run}` did not remove what was made: {error}") from error

    for_each(dict.fromkeys(one.where for one in scenario.removals), remove)


def _play_step(step: Step, shell: _Shell, manner: Manner) -> None:
    """Type *step*, and wait for its end.

    :raises LabError: when it does not end as the scenario says.
    """
    if step.say:
        for line in step.say.splitlines():
            shell.type(f"# {line}", manner)
            shell.end(is_command=False)
        return
    shell.type(step.text or "", manner)
    status, output = shell.end()
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "nothing")
    if status != step.status:
        raise LabError(f"it ended with status {status} instead of {step.status}, and said: {last}")
    if step.shows and not step.shows.search(output):
        raise LabError(f"its output does not show {step.shows.pattern!r}; it ended with: {last}")


class _Shell:
    """The shell of the instance *name* in its *pane*; the file *heard* gets its output."""

    def __init__(self, name: str, pane: Pane, heard: Path) -> None:
        self.name = name
        self._pane = pane
        self._heard = heard
        self._start = 0
        self._busy = False

    def type(self, text: str, manner: Manner) -> None:
        """Type *text*, which may have several lines, and Enter."""
        self._start = self._heard.stat().st_size
        self._busy = True
        # Somebody may have scrolled.
        tmux.tell(self._pane, "copy-mode", "-q")
        for line in text.split("\n"):
            for part in line if manner.speed else [line]:
                # A semicolon at the end would end tmux's command.
                keys = f"{part[:-1]}\\;" if part.endswith(";") else part
                tmux.tell(self._pane, "send-keys", "-l", "--", keys)
                manner.wait(1 / _RATE)
            tmux.tell(self._pane, "send-keys", "Enter")

    def end(self, *, is_command: bool = True, patience: float = _START) -> tuple[int, str]:
        """Wait until the prompt is back; return the status of the command and its output.

        :raises LabError: when it takes too long, or the pane is closed.
        """
        begun = not is_command
        deadline = time.monotonic() + patience
        while True:
            # First: what the shell says before it ends is then read below.
            alive = tmux.tell(self._pane, "display-message", "-p", "#{pane_dead}") == ["0"]
            said = self._heard.read_bytes()[self._start :]
            first = 0
            for mark in _MARK.finditer(said):
                if mark[1] == b"C":
                    first = mark.end()
                    if not begun:
                        begun, deadline = True, time.monotonic() + _END
                elif begun and mark[2]:
                    self._busy = False
                    output = said[first : mark.start()].decode(errors="replace")
                    return int(mark[2]), _CONTROL.sub("", output)
            if not alive:
                raise LabError(f"the shell in the pane of {self.name} has ended")
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL)
        if begun and is_command:
            raise LabError(f"{self.name}: the command has not ended after {_END:.0f} seconds")
        raise LabError(
            f"the shell in the pane of {self.name} does not say when a command ends: "
            "end it with `exit`, then run ./setup-env.py up"
        )

    def interrupt(self) -> None:
        """End what runs or is half typed, if anything."""
        if not self._busy:
            return
        try:
            self._start = self._heard.stat().st_size
            tmux.tell(self._pane, "send-keys", "C-c")
            self.end(is_command=False, patience=_START)
        except (LabError, OSError):
            # The pane is closed, or the command ignores the interrupt: its user sees it.
            return


@contextmanager
def _shell_here(root: Path, directory: Path) -> Iterator[_Shell]:
    """A shell in the repository *root*, in a pane of its own; its files are in *directory*."""
    begin = f"you@{HERE}"
    start = directory / "bashrc"
    start.write_text(bashrc(begin))
    variable = f"{LOCK_HOLDER}={os.getpid()}"
    command = f"env {variable} bash --noprofile --rcfile {shlex.quote(str(start))} -i"
    with (
        tmux.pane_below("this machine", command, root) as pane,
        _shell(HERE, begin, pane, directory / HERE) as shell,
    ):
        yield shell


@contextmanager
def _shell(name: str, begin: str, pane: Pane, heard: Path) -> Iterator[_Shell]:
    """The shell of *name* in its *pane*, which has to be at a prompt that begins with *begin*.

    :raises LabError: when a command runs there or is half typed, or the pane has a pipe.
    """
    deadline = time.monotonic() + _START
    at_prompt = re.compile(rf"{re.escape(begin)}:[^$]*\$")
    while True:
        [place] = tmux.tell(pane, "display-message", "-p", "#{cursor_y} #{pane_pipe} #{pane_dead}")
        row, pipe, dead = place.split()
        if pipe == "1":
            raise LabError(
                f"the pane of {name} is piped already: end that by `tmux pipe-pane -t {pane.id}`"
            )
        lines = tmux.tell(pane, "capture-pane", "-p")
        line = lines[int(row)] if int(row) < len(lines) else ""
        if dead == "0" and at_prompt.fullmatch(line.rstrip()):
            break
        if time.monotonic() > deadline or line.strip():
            raise LabError(
                f"the pane of {name} is not at its prompt: end what runs or is half typed there"
            )
        time.sleep(_POLL)
    heard.touch()
    tmux.tell(pane, "pipe-pane", f"exec cat > {heard}")
    try:
        yield _Shell(name, pane, heard)
    finally:
        pane.cmd("pipe-pane")
