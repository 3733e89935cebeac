"""The lab's tmux session: one pane for each instance, with ssh into it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

# libtmux reads this once, at import. Its own separator is not ASCII: in a locale without UTF-8,
# tmux prints it as _.
os.environ["LIBTMUX_TMUX_FORMAT_SEPARATOR"] = "<|openstackoid|>"

from libtmux import Pane, Server, Session, Window
from libtmux.constants import PaneDirection
from libtmux.exc import LibTmuxException, TmuxCommandNotFound

from lab.errors import LabError

# A server that we start would pass it on to every pane.
del os.environ["LIBTMUX_TMUX_FORMAT_SEPARATOR"]

SESSION = "openstackoid"
#: Names a tmux server (``tmux -L``) other than the user's own; tests set it.
SOCKET_VARIABLE = "OPENSTACKOID_TMUX_SOCKET"

# A program can change the title of its pane, but not an option of the pane.
_INSTANCE = "@instance"
# The title of a pane beside those of the instances.
_TITLE = "@title"
_BORDER = f"#{{?{_INSTANCE}, #{{{_INSTANCE}}} ,#{{?{_TITLE}, #{{{_TITLE}}} ,}}}}"
#: This many panes or more are tiled instead of stacked.
_TILED_FROM = 3
#: Lines that a pane needs while nobody is attached.
_LINES_PER_PANE = 8
#: Seconds that the command of a pane beside the others has for its first and for its last words.
_PATIENCE = 30


def arrange(names: Sequence[str], ssh_config: Path) -> None:
    """Make the session have one living pane for each of *names*, in this order.

    An existing session, panes with a living ssh, and panes that the user added stay.

    :raises LabError: when tmux is missing or fails, for example because no more panes fit.
    """
    try:
        session = _find() or _new(names, ssh_config)
        window = _window(session)
        _dress(window)
        panes = _panes(session)
        for name in panes.keys() - set(names):
            panes.pop(name).kill()
        previous: Pane | None = None
        for name in names:
            command = _command(name, ssh_config)
            if name not in panes:
                panes[name] = _split(window, previous, name, command)
            elif panes[name].pane_dead == "1":
                panes[name].respawn(shell=command, kill=True)
            previous = panes[name]
    except TmuxCommandNotFound as error:
        raise LabError("tmux is missing: sudo apt-get install tmux") from error
    except LibTmuxException as error:
        raise LabError(
            f"tmux failed: {' '.join(str(error).split())}; run `tmux kill-session -t {SESSION}`, "
            "then `./setup-env.py attach`"
        ) from error


def attach() -> NoReturn:
    """Show the session on this terminal; inside tmux, switch to it."""
    inside = "TMUX" in os.environ and not os.environ.get(SOCKET_VARIABLE)
    action = "switch-client" if inside else "attach-session"
    os.execvp("tmux", [*_tmux(), action, "-t", f"={SESSION}"])  # noqa: S606


def watcher() -> tuple[list[str], int, int]:
    """The command that shows the session without a hand in it, and its columns and lines.

    :raises LabError: when there is no session.
    """
    size = "#{window_width} #{window_height} #{status}"
    [shown] = tell(_window(_session()).panes[0], "display-message", "-p", size)
    columns, lines, status = shown.split()
    # The lines of tmux's own status bar are on, off or a number.
    bar = int({"on": "1", "off": "0"}.get(status, status))
    argv = [*_tmux(), "-u", "attach-session", "-r", "-t", f"={SESSION}"]
    return argv, int(columns), int(lines) + bar


def instance_panes() -> dict[str, Pane]:
    """The instances' panes.

    :raises LabError: when there is no session.
    """
    return _panes(_session())


def tell(pane: Pane, *words: str) -> list[str]:
    """Run the tmux command *words* on *pane*, and return its output.

    :raises LabError: when it fails, for example because the pane was closed.
    """
    command, *arguments = words
    done = pane.cmd(command, *arguments)
    if done.stderr:
        raise LabError(f"tmux failed: {' '.join(done.stderr)}")
    return done.stdout


@contextmanager
def pane_below(
    title: str, command: str, directory: Path, *, tidies_up: bool = False
) -> Iterator[Pane]:
    """A pane below all others that runs *command*, and has said something.

    At the end, the command is ended, with a Ctrl-C if it *tidies up*, and the layout is what it
    was.

    :raises LabError: when there is no room for it, or the command ends.
    """
    window = _window(_session())
    for pane in window.panes:
        # A killed command may have left one.
        if pane.cmd("show-options", "-p", "-q", "-v", _TITLE).stdout == [title]:
            _end(pane, tidies_up=tidies_up)
    layout = tell(window.panes[0], "display-message", "-p", "#{window_layout}")[0]
    replaced = f"exec {command}"
    try:
        pane = window.panes[0].split(
            direction=PaneDirection.Below,
            full_window_split=True,
            size="30%",
            start_directory=directory,
            shell=replaced,
            attach=False,
        )
    except LibTmuxException as error:
        raise LabError(
            "there is no room for another pane: make the terminal with the session larger"
        ) from error
    try:
        tell(pane, "set-option", "-p", _TITLE, title)
        deadline = time.monotonic() + _PATIENCE
        while not any(tell(pane, "capture-pane", "-p")):
            if time.monotonic() > deadline:
                raise LabError(f"`{command}` says nothing: try it in another terminal")
            time.sleep(0.1)
        yield pane
    finally:
        _end(pane, tidies_up=tidies_up)
        window.cmd("select-layout", layout)


def _end(pane: Pane, *, tidies_up: bool) -> None:
    """Close *pane*; interrupt its command before if it *tidies up*."""
    with suppress(LabError):
        pid, dead = tell(pane, "display-message", "-p", "#{pane_pid} #{pane_dead}")[0].split()
        if dead == "0" and tidies_up:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGINT)
            deadline = time.monotonic() + _PATIENCE
            while (
                tell(pane, "display-message", "-p", "#{pane_dead}") == ["0"]
                and time.monotonic() < deadline
            ):
                time.sleep(0.1)
        tell(pane, "kill-pane")


def remove() -> None:
    """End the session, if there is one and tmux is installed."""
    try:
        session = _find()
        if session is not None:
            session.kill()
    except TmuxCommandNotFound:
        pass
    except LibTmuxException as error:
        raise LabError(f"tmux failed: {' '.join(str(error).split())}") from error


def _tmux() -> list[str]:
    socket = os.environ.get(SOCKET_VARIABLE)
    return ["tmux", "-L", socket] if socket else ["tmux"]


def _server() -> Server:
    return Server(socket_name=os.environ.get(SOCKET_VARIABLE))


def _session() -> Session:
    session = _find()
    if session is None:
        raise LabError("there is no tmux session: run ./setup-env.py up")
    return session


def _find() -> Session | None:
    found = [one for one in _server().sessions if one.session_name == SESSION]
    return found[0] if found else None


def _new(names: Sequence[str], ssh_config: Path) -> Session:
    columns, lines = shutil.get_terminal_size((160, 50))
    session = _server().new_session(
        session_name=SESSION,
        window_name="lab",
        window_command=_command(names[0], ssh_config),
        x=columns,
        y=max(lines, _LINES_PER_PANE * len(names)),
    )
    _mark(session.active_window.panes[0], names[0])
    return session


def _window(session: Session) -> Window:
    """The window with our panes; the first window if the user closed them all."""
    for window in session.windows:
        if any(_instance_of(pane) for pane in window.panes):
            return window
    return session.windows[0]


def _dress(window: Window) -> None:
    window.set_option("pane-border-status", "top")
    window.set_option("pane-border-format", _BORDER)
    # A failed ssh leaves its last output on the screen, and a pane to respawn.
    window.set_option("remain-on-exit", "failed")


def _panes(session: Session) -> dict[str, Pane]:
    """Our panes in any window of the session, by their instances."""
    panes: Iterable[Pane] = (pane for window in session.windows for pane in window.panes)
    return {name: pane for pane in panes if (name := _instance_of(pane))}


def _instance_of(pane: Pane) -> str:
    shown = pane.cmd("show-options", "-p", "-q", "-v", _INSTANCE).stdout
    return shown[0] if shown else ""


def _mark(pane: Pane, name: str) -> None:
    pane.cmd("set-option", "-p", _INSTANCE, name)


def _split(window: Window, previous: Pane | None, name: str, command: str) -> Pane:
    """A new pane below *previous*, or above all others; then the layout is evened out."""
    beside = previous or window.panes[0]
    direction = PaneDirection.Below if previous else PaneDirection.Above
    pane = beside.split(direction=direction, shell=command, attach=False)
    _mark(pane, name)
    window.refresh()
    window.select_layout("even-vertical" if len(window.panes) < _TILED_FROM else "tiled")
    return pane


def _command(name: str, ssh_config: Path) -> str:
    return shlex.join(["exec", "ssh", "-t", "-F", str(ssh_config), name])
