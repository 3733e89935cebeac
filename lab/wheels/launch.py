"""Start one program by asking a fork server, and stand for it under supervisor.

The imports of an OpenStack service cost seconds of CPU and a hundred megabytes, and do not depend
on the instance. A fork server (:mod:`lab.wheels.forkserver`) has done them once; this
launcher hands it standard streams, arguments and environment, forwards signals to the process that
it forks, and ends with its status. When the launcher dies, however it dies, that process dies too:
it holds the other end of a pipe whose closing kills it.

This module uses the standard library only, and little of it: there is one launcher per program.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import sys
import time

#: Seconds that a program may take from its start to its first answer. On an emulated machine that
#: starts everything at once, keystone takes more than three minutes.
PATIENCE = 600.0


class LaunchError(Exception):
    """The fork server could not start the program; its text says where to look."""


class Process:
    """A launched process: it lives as long as this object's process does, at the most."""

    def __init__(self, connection: socket.socket, pid: int, lifeline: int) -> None:
        self._connection = connection
        self._lifeline = lifeline
        self.pid = pid

    def wait(self) -> int:
        """Its exit status, once it has ended; 137 when it was killed."""
        status = b""
        while chunk := self._connection.recv(4):
            status = chunk
        self._connection.close()
        os.close(self._lifeline)
        return int.from_bytes(status, "big") if status else 137


def spawn(directory: str, *kinds: str) -> None:
    """Start the fork servers of *kinds* that *directory* has none of yet."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"OPENSTACKOID_INSTANCE", "PYTHONDONTWRITEBYTECODE"}
    }
    # One heap instead of one per thread: 10 MiB less in a service that has six.
    environment["MALLOC_ARENA_MAX"] = "1"
    # Titles must leave the environment alone: it tells whose a process is (setproctitle).
    environment["SPT_NOENV"] = "1"
    if os.fork() == 0:
        try:
            os.setsid()
            # A launcher ignores it; fork servers, libvirt and others wait for their children.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            log = os.open(os.path.join(directory, "log"), flags, 0o644)  # noqa: PTH118
            os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            command = [sys.executable, "-m", "lab.wheels.forkserver", directory, *kinds]
            os.execve(command[0], command, environment)  # noqa: S606
        finally:
            os._exit(127)


def _request(
    kind: str, directory: str, message: bytes, descriptors: list[int]
) -> tuple[socket.socket, int] | None:
    """Hand *message* to the fork server: its connection and the new process's pid, if it runs."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    # A path relative to the directory: an absolute one may exceed the 108 bytes of sun_path.
    try:
        connection.connect(f"/proc/self/fd/{_open(directory)}/{kind}.sock")
        connection.sendmsg([len(message).to_bytes(4, "big") + message], [rights])
        answer = connection.recv(4)
    except (ConnectionError, FileNotFoundError, TimeoutError):
        answer = b""
    if len(answer) != 4:  # noqa: PLR2004
        connection.close()
        return None
    connection.settimeout(None)
    return connection, int.from_bytes(answer, "big")


def _open(directory: str, known: dict[str, int] = {}) -> int:  # noqa: B006
    if directory not in known:
        known[directory] = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return known[directory]


def launch(
    kind: str,
    directory: str,
    entry: str,
    argv: list[str],
    environment: dict[str, str],
    *,
    streams: tuple[int, int, int] = (0, 1, 2),
) -> Process:
    """Run *entry* (``module:function``) with *argv* in a fork of the server for *kind*.

    :param directory: where the fork servers of this host have their sockets and logs.
    :raises LaunchError: when no fork server answers.
    """
    message = json.dumps({"entry": entry, "argv": argv, "environment": environment}).encode()
    lifeline, ours = os.pipe()
    deadline = time.monotonic() + PATIENCE
    # Whoever brings an instance up starts the fork servers first; they get a second to appear.
    spawned = time.monotonic() - 4
    while True:
        answer = _request(kind, directory, message, [*streams, lifeline])
        if answer:
            os.close(lifeline)
            return Process(answer[0], answer[1], ours)
        now = time.monotonic()
        if now > deadline:
            os.close(lifeline)
            os.close(ours)
            raise LaunchError(f"no fork server for {kind}: see {directory}/log")
        if now - spawned > 5:  # noqa: PLR2004
            spawn(directory, kind)
            spawned = now
        time.sleep(0.05)


def main() -> None:
    """``launch.py KIND DIRECTORY ENTRY NAME [ARGUMENT…]``: run it, and end as it ends."""
    kind, directory, entry, *argv = sys.argv[1:]
    pending: list[int] = []
    pid = 0

    def forward(number: int, _frame: object) -> None:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        else:
            pending.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = launch(kind, directory, entry, argv, dict(os.environ))
    except LaunchError as error:
        sys.exit(f"error: {error}")
    pid = process.pid
    for early in pending:
        os.kill(pid, early)
    sys.exit(process.wait())


if __name__ == "__main__":
    main()
