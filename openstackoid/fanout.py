"""Runs one ``openstack`` command for each plain scope of an expression, and merges the outputs.

Each run is a fork of this process, so that all share what is imported, and the vanilla shell runs
in it. The shell's command does not print: it hands its output to this process, which merges it.
Only ``openstackoid.osc`` imports this module, and only for a scope with an expression.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pickle
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, Any, NoReturn, cast

from cliff.columns import FormattableColumn
from cliff.command import Command
from cliff.lister import Lister
from cliff.show import ShowOne
from openstackclient.common import clientmanager
from openstackclient.shell import OpenStackShell
from stevedore import ExtensionManager

from openstackoid.expression import All, First, Tree, leaves
from openstackoid.merge import Cell, Output, Result, show
from openstackoid.scope import Scope
from openstackoid.shared_input import SharedInput

#: The number of forks that run at the same time.
AT_A_TIME = 32
#: Exit status after Ctrl-C, as cliff.app has it.
_INTERRUPTED = 130


class Shell(OpenStackShell):
    """The vanilla shell; its display commands hand over their output."""

    output: Output | None = None
    #: The name of the server that the command makes.
    server: str | None = None

    def prepare_to_run_command(self, cmd: Command) -> None:
        """Take the place of *cmd*'s last step, which prints."""
        super().prepare_to_run_command(cmd)
        if isinstance(cmd, Lister | ShowOne):
            is_list = isinstance(cmd, Lister)

            def hand_over(
                options: argparse.Namespace, columns: Sequence[str], data: Iterable[Any]
            ) -> int:
                rows = [tuple(row) for row in data] if is_list else [tuple(data)]
                self.output = Output(tuple(columns), rows, is_list, options)
                return 0

            cast("Any", cmd).produce_output = hand_over
        if type(cmd).__name__ == "CreateServer":
            act = cmd.take_action

            def note_name(options: argparse.Namespace) -> Any:  # noqa: ANN401
                self.server = options.server_name
                return act(options)

            cast("Any", cmd).take_action = note_name

    def name_broken_server(self, since: datetime, *, remove: bool) -> None:
        """Say which server in ERROR the command has left, and *remove* it if asked to."""
        if self.server is None or not hasattr(self, "client_manager"):
            return
        compute = self.client_manager.compute
        for server in compute.servers(name=f"^{re.escape(self.server)}$", status="ERROR"):
            if datetime.fromisoformat(server.created_at) < since:
                continue
            if remove:
                compute.delete_server(server)
            fault = (server.fault or {}).get("message", "no reason given")
            print(
                f"server {server.id} is in ERROR{' and was removed' if remove else ''}: {fault}",
                file=sys.stderr,
            )


@dataclass(frozen=True)
class Options:
    """How to run a command several times."""

    #: Seconds for each run.
    timeout: float = 30
    #: Whether to remove a server that ended in ERROR before the next instance is tried.
    cleanup: bool = False


def confirm(plan: Tree[Scope]) -> bool:
    """Whether the user wants the runs of *plan*, which this shows on the terminal."""
    label = _labels(plan)
    for scope in leaves(plan):
        _warn(f"  {label(scope)}")
    try:
        return input("Run the command there? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


def run(
    plan: Tree[Scope], argv: Sequence[str], options: Options, force: Callable[[Scope], None]
) -> int:
    """Run ``openstack`` with *argv* as *plan* says; print the results, and return an exit status.

    *force* makes the shell of a fork use a plain scope.
    """
    _import_commands()
    runs = _Runs(argv, options, force, _labels(plan))
    try:
        return show(asyncio.run(runs.execute(plan)))
    except KeyboardInterrupt:
        if runs.finished:
            show(runs.finished)
        for name in runs.under_way.values():
            _warn(f"{name}: interrupted")
        return _INTERRUPTED


def _import_commands() -> None:
    """Import all commands once; each shell would import them again in its fork.

    Source of the groups' names: ``openstackclient.shell.OpenStackShell._load_plugins``.
    """
    for module in clientmanager.PLUGIN_MODULES:
        if version := getattr(module, "DEFAULT_API_VERSION", None):
            name = module.API_NAME.replace("-", "_")
            ExtensionManager(f"openstack.{name}.v{version.partition('.')[0]}")
    ExtensionManager("openstack.common")


@dataclass
class _Runs:
    """The runs of one command."""

    argv: Sequence[str]
    options: Options
    force: Callable[[Scope], None]
    label: Callable[[Scope], str]
    #: The process IDs of forks, with their labels.
    under_way: dict[int, str] = field(default_factory=dict)
    finished: list[Result] = field(default_factory=list)
    stdin: SharedInput = field(default_factory=SharedInput)
    _at_a_time: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_A_TIME))

    async def execute(self, tree: Tree[Scope]) -> list[Result]:
        if isinstance(tree, All):
            found = await asyncio.gather(*(self.execute(member) for member in tree.members))
            return [result for results in found for result in results]
        if isinstance(tree, First):
            return await self._first(tree.members)
        async with self._at_a_time:
            result = await self._fork(tree)
        self.finished.append(result)
        return [result]

    async def _first(self, members: Sequence[Tree[Scope]]) -> list[Result]:
        *others, last = members
        for member in others:
            results = await self.execute(member)
            failed = [result for result in results if result.status]
            if not failed or any(result.is_wrong_use for result in failed):
                return results
            for result in failed:
                _warn(f"{result.label}: {result.reason} (trying the next one)")
        return await self.execute(last)

    async def _fork(self, scope: Scope) -> Result:
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            sys.stdout.flush()
            sys.stderr.flush()
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                self._run_in_fork(scope, writer, stdout, stderr)
            os.close(writer)
            label = self.under_way[pid] = self.label(scope)
            data, end = b"", ""
            try:
                data = await asyncio.wait_for(_read(reader), self.options.timeout)
            except TimeoutError:
                end = f"no answer within {self.options.timeout:g} seconds"
            finally:
                if not data:
                    _kill(pid)
                os.waitpid(pid, 0)
            del self.under_way[pid]
            status, output = pickle.loads(data) if data else (1, None)  # noqa: S301 - our own fork's
            stdout.seek(0)
            stderr.seek(0)
            messages = stderr.read().decode(errors="replace") + end
            return Result(label, status, output, stdout.read(), messages)

    def _run_in_fork(
        self, scope: Scope, writer: int, stdout: IO[bytes], stderr: IO[bytes]
    ) -> NoReturn:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            self.stdin.use()
            self.force(scope)
            shell, began = Shell(), datetime.now(UTC).replace(microsecond=0)
            try:
                status = shell.run(list(self.argv))
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            if status:
                shell.name_broken_server(began, remove=self.options.cleanup)
            sys.stdout.flush()
            sys.stderr.flush()
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump((status, None if status else _portable(shell.output)), pipe)
        finally:
            os._exit(0)


async def _read(descriptor: int) -> bytes:
    """All that a pipe holds, until its other end closes."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return await reader.read()
    finally:
        transport.close()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _portable(output: Output | None) -> Output | None:
    """*output* for another process."""
    if output is None:
        return None
    rows = [
        tuple(
            Cell(value.human_readable(), value.machine_readable())
            if isinstance(value, FormattableColumn)
            else value
            for value in row
        )
        for row in output.rows
    ]
    # A formatter needs numbers, texts and lists of texts.
    plain = (str, int, float, bool, list, type(None))
    options: dict[str, Any] = {"sort_columns": [], "sort_direction": None} | {
        name: value for name, value in vars(output.options).items() if isinstance(value, plain)
    }
    return replace(output, rows=rows, options=argparse.Namespace(**options))


def _labels(plan: Tree[Scope]) -> Callable[[Scope], str]:
    """Names a plain scope of *plan* by what differs from the other ones."""
    scopes = list(leaves(plan))
    varying = [service for service in scopes[0] if len({scope[service] for scope in scopes}) > 1]
    # A network that follows compute (openstackoid.expression.expand) tells nothing more.
    if all(scope.get("network") == scope.get("compute") for scope in scopes):
        varying = [service for service in varying if service != "network"]
    if len(varying) == 1:
        return lambda scope: scope[varying[0]]
    shown = varying or list(scopes[0])
    return lambda scope: ", ".join(f"{service}={scope[service]}" for service in shown)


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
