"""Start, query and stop a supervisord of the lab: an instance's or a provider's."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from xml.parsers.expat import ExpatError

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport, UnixStreamHTTPConnection

from lab import processes
from lab.errors import LabError

#: Seconds within which supervisord has to answer, and each of its programs has to start or end.
PATIENCE = 60

#: Seconds that a program has to run before it counts as stable.
_SETTLED = 3

_ALIVE = frozenset({"STARTING", "RUNNING", "BACKOFF", "STOPPING"})
#: Errors when no supervisord listens, and errors of a supervisord that is unwell.
_ABSENT = (FileNotFoundError, ConnectionRefusedError)
_UNWELL = (OSError, xmlrpc.client.Error, http.client.HTTPException, ExpatError)


class SupervisionError(LabError):
    """A program or supervisord does not start or stop; the text names it and a log."""


class _Connection(UnixStreamHTTPConnection):  # type: ignore[misc]
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(PATIENCE)


class Supervisor:
    """The supervisord that listens on *socket*, with the file *configuration*.

    Its messages while it starts go into the file *output*.
    """

    def __init__(self, socket: Path, configuration: Path, output: Path) -> None:
        self._socket = socket
        self._configuration = configuration
        self._output = output

    @property
    def _arguments(self) -> list[str]:
        return ["-m", "supervisor.supervisord", "-c", str(self._configuration)]

    @property
    def _rpc(self) -> Any:  # noqa: ANN401 - supervisord defines the methods
        """A new connection each time: supervisor's transport does not survive a refused one."""
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        transport._get_connection = self._connection
        # The URL is never used: the transport knows the socket.
        return xmlrpc.client.ServerProxy("http://supervisor", transport=transport).supervisor

    def _connection(self) -> _Connection:
        connection = _Connection("localhost")
        connection.socketfile = str(self._socket)
        return connection

    def running(self) -> bool:
        """Whether it answers."""
        try:
            state = self._rpc.getState()
        except _UNWELL:
            return False
        return bool(state["statename"] == "RUNNING")

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it, or make it reread its configuration and restart changed programs.

        :raises SupervisionError: when it does not answer.
        """
        if self.running():
            self._update()
            return
        # Fail if a supervisord runs but does not answer: a second one must not start beside it.
        self.states()
        self._socket.unlink(missing_ok=True)
        command = [sys.executable, *self._arguments]
        with self._output.open("w") as log:
            status = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            ).returncode
        deadline = time.monotonic() + PATIENCE
        while not self.running():
            if status or time.monotonic() > deadline:
                raise SupervisionError(f"supervisord does not answer: see {self._output}")
            time.sleep(0.02)

    def _update(self) -> None:
        added, changed, removed = self._rpc.reloadConfig()[0]
        for name in (*removed, *changed):
            self._rpc.stopProcessGroup(name)
            self._rpc.removeProcessGroup(name)
        for name in (*added, *changed):
            self._rpc.addProcessGroup(name)

    def stop_leftovers(self) -> None:
        """Stop the leftovers of another supervisord with this configuration, alive or dead.

        :raises SupervisionError: when something survives even a kill.
        """
        # Repeat: a process may start something before it ends.
        for _ in range(5):
            left = self._leftovers()
            if not left:
                return
            processes.stop(left)
        pids = ", ".join(str(process.pid) for process in left)
        raise SupervisionError(f"processes {pids} of an earlier start survive even a kill")

    def _leftovers(self) -> list[psutil.Process]:
        """The supervisords of this configuration that do not answer, and their programs."""
        reached = int(self._rpc.getPID()) if self.running() else 0
        return [
            process
            for process in psutil.process_iter()
            if self._is_ours(process) and not (reached and _is_below(process, reached))
        ]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            environment = process.environ()
            # A fork server has the environment of the program that started it, but serves all
            # instances (lab.wheels.launch). A program that it forked ends with its launcher.
            started = (
                environment.get("SUPERVISOR_SERVER_URL") == f"unix://{self._socket}"
                and "SPT_NOENV" not in environment
            )
            return started or process.cmdline()[1:] == self._arguments
        except psutil.Error:
            return False

    def ensure(self, names: Iterable[str]) -> None:
        """Start the programs *names* that do not run, without waiting for them.

        :raises SupervisionError: when one cannot be started, or supervisord does not answer.
        """
        states = self.states()
        for name in names:
            if states.get(name) == "BACKOFF":
                # Supervisor would wait longer and longer before each retry.
                self.stop_program(name)
            if states.get(name) not in {"RUNNING", "STARTING"}:
                try:
                    self._rpc.startProcess(name, False)
                except xmlrpc.client.Fault as fault:
                    if fault.faultCode != Faults.ALREADY_STARTED:
                        raise SupervisionError(f"{name}: {fault.faultString}") from fault
                except _UNWELL as error:
                    raise self._unwell(error) from error

    def states(self) -> dict[str, str]:
        """The state of every program, in supervisor's words; empty if no supervisord runs.

        :raises SupervisionError: when one runs but does not answer properly.
        """
        return {str(row["name"]): str(row["statename"]) for row in self._rows()}

    def settled(self) -> set[str]:
        """The programs that have been running for a while.

        :raises SupervisionError: when supervisord runs but does not answer properly.
        """
        return {
            str(row["name"])
            for row in self._rows()
            if row["statename"] == "RUNNING" and row["now"] - row["start"] >= _SETTLED
        }

    def _rows(self) -> list[dict[str, Any]]:
        try:
            return cast("list[dict[str, Any]]", self._rpc.getAllProcessInfo())
        except _ABSENT:
            return []
        except _UNWELL as error:
            raise self._unwell(error) from error

    def _unwell(self, error: Exception) -> SupervisionError:
        return SupervisionError(f"supervisord does not answer ({error}): see {self._output}")

    def pid(self, name: str) -> int:
        """The process ID of the program *name*; 0 if it does not run."""
        return int(self._rpc.getProcessInfo(name)["pid"])

    def kill_programs(self, names: Iterable[str]) -> None:
        """Kill the programs *names*; they stay dead until somebody starts them.

        :raises SupervisionError: when one does not end, or supervisord does not answer.
        """
        killing = list(names)
        victims = self._processes(killing)
        # While they are frozen, supervisord may ask them to end: they get no further than it does.
        _send(signal.SIGSTOP, victims)
        try:
            for name in killing:
                with contextlib.suppress(xmlrpc.client.Fault):  # it does not run
                    self._rpc.stopProcess(name, False)
        except _UNWELL as error:
            raise self._unwell(error) from error
        finally:
            _send(signal.SIGKILL, victims)
        _wait(lambda: not set(killing) & self._alive(), f"some of {', '.join(killing)} did")

    def freeze_programs(self, names: Iterable[str]) -> None:
        """Freeze the programs *names*: they keep their connections, and do nothing.

        :raises SupervisionError: when supervisord does not answer.
        """
        _send(signal.SIGSTOP, self._processes(names))

    def frozen(self) -> set[str]:
        """The programs that are frozen.

        :raises SupervisionError: when supervisord does not answer.
        """
        return {str(row["name"]) for row in self._rows() if row["pid"] and _is_frozen(row["pid"])}

    def thaw(self) -> None:
        """Let what is frozen go on; where supervisord does not answer, do nothing."""
        with contextlib.suppress(SupervisionError):
            _send(signal.SIGCONT, self._processes(self.frozen()))

    def _processes(self, names: Iterable[str]) -> list[psutil.Process]:
        """All processes of the programs *names*, wherever they come from.

        A program that a fork server forked is no child of supervisord, but has the standard output
        that supervisord made for it.
        """
        wanted = set(names)
        pids = {row["pid"] for row in self._rows() if row["name"] in wanted and row["pid"]}
        outputs = {output for pid in pids if (output := _output(pid))}
        return [
            process
            for process in psutil.process_iter()
            if process.pid in pids or _output(process.pid) in outputs
        ]

    def stop_program(self, name: str) -> None:
        """Stop the program *name*, if it runs.

        :raises SupervisionError: when it does not end, or supervisord does not answer as it should.
        """
        try:
            self._rpc.stopProcess(name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (Faults.NOT_RUNNING, Faults.BAD_NAME):
                raise SupervisionError(f"{name} does not stop: {fault.faultString}") from fault
        except _ABSENT:
            return
        except _UNWELL as error:
            raise self._unwell(error) from error

    def stop_all(self, names: Iterable[str]) -> None:
        """Stop the programs *names* in parallel; where nothing runs or answers, do nothing.

        :raises SupervisionError: when something does not end in time.
        """
        stopping = set(names)
        try:
            for name in stopping:
                with contextlib.suppress(xmlrpc.client.Fault):  # it does not run
                    self._rpc.stopProcess(name, False)
            _wait(lambda: not stopping & self._alive(), f"some of {', '.join(stopping)} did")
        except _UNWELL:
            return

    def shutdown(self) -> None:
        """End supervisord and what it still runs; where none answers, do nothing.

        :raises SupervisionError: when it does not end in time.
        """
        try:
            pid = int(self._rpc.getPID())
            self._rpc.shutdown()
        except _UNWELL:
            return
        _wait(lambda: not Path(f"/proc/{pid}").exists(), f"supervisord ({pid}) did")

    def _alive(self) -> set[str]:
        return {name for name, state in self.states().items() if state in _ALIVE}


def _output(pid: int) -> str:
    """The standard output of the process *pid*, as proc(5) names it; empty if nobody may know."""
    try:
        return str(Path(f"/proc/{pid}/fd/1").readlink())
    except OSError:
        return ""


def _is_frozen(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def _send(number: signal.Signals, victims: Iterable[psutil.Process]) -> None:
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _is_below(process: psutil.Process, ancestor: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return ancestor in (process.pid, *(parent.pid for parent in process.parents()))
    # It has ended.
    return True


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SupervisionError(f"{what} not end within {PATIENCE} s")
        time.sleep(0.05)
