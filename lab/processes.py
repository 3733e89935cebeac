"""Find the processes of a lab by the mark in their environment, and stop them by their ID."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from lab.errors import LabError

#: Environment variable in every process of a lab: the absolute path of the lab's state.
LAB_MARK = "OPENSTACKOID_LAB"
#: Environment variable in every process of an instance: the instance's name.
INSTANCE_MARK = "OPENSTACKOID_INSTANCE"
#: Environment variable of a command that works for a process with this ID, which locks the lab.
LOCK_HOLDER = "OPENSTACKOID_LOCK_HOLDER"
#: Seconds for a process to end: before a kill, unless a caller says otherwise, and after it.
_PATIENCE = 10.0


def marks(state: Path, instance: str | None = None) -> dict[str, str]:
    """The environment that marks a process of the lab in *state*, and of *instance*."""
    return {LAB_MARK: str(state)} | ({INSTANCE_MARK: instance} if instance else {})


def marked(state: Path, instance: str | None = None) -> list[psutil.Process]:
    """The processes of the lab in *state*; with *instance*, only those of this instance.

    If ``setup-env.py`` runs inside the lab, the list leaves out itself and its ancestors, except
    for the listening sshd and what is above it: a session does not need those.
    """
    wanted = marks(state, instance)
    running = {process.pid: process for process in psutil.process_iter()}
    found = {pid for pid, process in running.items() if _bears(process, wanted)}
    servers = _ssh_servers(running)
    directory = state / instance if instance else state
    listeners = {pid for pid, (_, title) in servers.items() if f"{directory}/" in title}
    sessions = {pid for pid, (parent, _) in servers.items() if parent in listeners}
    for pid in found:
        sessions |= _servers_above(running[pid], servers)
    found |= listeners | sessions
    me = psutil.Process()
    for process in (me, *me.parents()):
        if process.pid in listeners:
            break
        found.discard(process.pid)
    return [running[pid] for pid in sorted(found)]


def stop(processes: Iterable[psutil.Process], grace: float = _PATIENCE) -> None:
    """Ask *processes* to end; kill those that still run after *grace* seconds."""
    alive = list(processes)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            # An interactive shell ignores SIGTERM, but ends with SIGHUP.
            if process.terminal():
                process.send_signal(signal.SIGHUP)
    for process in wait(alive, grace):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait(alive, _PATIENCE)


def wait(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait at most *seconds* for *processes*, and return those that have not ended.

    A zombie has ended: psutil's own wait_procs would wait until the parent reaps it, and on some
    machines process 1 takes seconds for that.
    """
    deadline = time.monotonic() + seconds
    alive = [process for process in processes if not _has_ended(process)]
    while alive and time.monotonic() < deadline:
        time.sleep(0.02)
        alive = [process for process in alive if not _has_ended(process)]
    return alive


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_all(state: Path) -> None:
    """Kill every process of the lab in *state*: nobody needs its data any more.

    :raises LabError: when one survives.
    """
    # Repeat: a supervisor may start something before it is killed.
    for _ in range(10):
        left = marked(state)
        if not left:
            return
        stop(left, grace=0)
    pids = ", ".join(str(process.pid) for process in left)
    raise LabError(f"processes {pids} survive even a kill: see `ps`, then try again")


def _bears(process: psutil.Process, wanted: dict[str, str]) -> bool:
    try:
        environment = process.environ()
    except psutil.Error:
        return False
    return all(environment.get(key) == value for key, value in wanted.items())


def _ssh_servers(running: dict[int, psutil.Process]) -> dict[int, tuple[int, str]]:
    """The parent and the title of every sshd.

    sshd overwrites its environment with its title (setproctitle), so it has no mark. But the title
    of its listener names the configuration, and its sessions are the parents of what they run.
    """
    servers = {}
    for pid, process in running.items():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("sshd") and not _has_ended(process):
                servers[pid] = (process.ppid(), " ".join(process.cmdline()))
    return servers


def _servers_above(process: psutil.Process, servers: dict[int, tuple[int, str]]) -> set[int]:
    """The sshd session that *process* runs in, with its monitor."""
    above: set[int] = set()
    try:
        pid = process.ppid()
    except psutil.Error:
        return above
    while pid in servers and "[listener]" not in servers[pid][1]:
        above.add(pid)
        pid = servers[pid][0]
    return above
