"""Prints what several runs of one ``openstack`` command hand over, as one output."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from cliff.columns import FormattableColumn
from cliff.lister import Lister
from cliff.show import ShowOne

#: The column that says where a row comes from, and the one that says why there is none.
INSTANCE, ERROR = "Instance", "Error"

#: Exit status of argparse for a wrong option, and the words of keystoneauth and openstacksdk for a
#: request that a service calls wrong.
_USAGE = 2
_WRONG_REQUEST = re.compile(r"\bHTTP 400\b|\bBadRequestException: 400\b")
#: openstacksdk's ``HttpException``, with the service's own message at its end.
_HTTP_ERROR = re.compile(r"\w+: (\d{3}: )\w+ Error for url: \S+?, (.+)")
#: The formats with a place for the error of an instance.
_TELLING = ("table", "json", "yaml")


@dataclass(frozen=True)
class Output:
    """What a command hands over instead of printing it."""

    columns: tuple[str, ...]
    #: The rows of a list; a single row for one object.
    rows: list[tuple[Any, ...]]
    is_list: bool
    #: The options of cliff's formatters.
    options: argparse.Namespace


@dataclass(frozen=True)
class Result:
    """The end of one run of the command."""

    #: The instances that vary: ``InstanceOne``, or ``compute=InstanceOne, image=InstanceTwo``.
    label: str
    status: int
    #: None if the command failed or printed by itself.
    output: Output | None = None
    stdout: bytes = b""
    stderr: str = ""

    @property
    def is_wrong_use(self) -> bool:
        """Whether the user has to change the command, so that trying elsewhere makes no sense."""
        return self.status == _USAGE or bool(_WRONG_REQUEST.search(self.stderr))

    @property
    def reason(self) -> str:
        """Why the command failed, in one line."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        if not lines:
            return f"exit status {self.status}"
        return _HTTP_ERROR.sub(r"\1\2", lines[-1])


class Cell(FormattableColumn[Any]):
    """A value that reads differently for people and for machines."""

    def __init__(self, human: Any, machine: Any) -> None:  # noqa: ANN401
        super().__init__(machine)
        self._human = human

    def human_readable(self) -> Any:  # noqa: ANN401
        """The text in a table."""
        return self._human


#: A value that an instance does not have.
NOTHING = Cell("", None)


class _Merged(Lister):
    """Prints rows as any command that lists does."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        super().__init__(cast("Any", SimpleNamespace(stdout=sys.stdout)), None)
        self._table = (columns, rows)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """The rows."""
        return self._table


class _One(ShowOne):
    """Prints one object as any command that shows one does."""

    def __init__(self, columns: Sequence[str], values: Sequence[Any]) -> None:
        super().__init__(cast("Any", SimpleNamespace(stdout=sys.stdout)), None)
        self._object = (columns, values)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """The object."""
        return self._object


def show(results: Sequence[Result]) -> int:
    """Print *results*, and return the exit status of them all.

    A single result is printed as if the command had run without an expression.
    """
    failed = [result for result in results if result.status]
    if all(result.status == _USAGE for result in results):
        sys.stderr.write(failed[0].stderr)  # A wrong option: once is enough.
        return _USAGE
    outputs = [result.output for result in results if result.output]
    options = outputs[0].options if outputs else None
    is_table = options and (outputs[0].is_list or options.formatter in ("json", "yaml", "value"))
    for result in results:
        _show_messages(
            result,
            is_named=len(results) > 1,
            is_told=bool(is_table and options and options.formatter in _TELLING),
        )
    if options is None:
        for result in results:
            _show_text(result, is_named=len(results) > 1)
    elif len(results) == 1:
        _show_output(outputs[0])
    elif is_table:
        _show_rows(results, options)
    else:
        for result in results:
            _show_one(result)
    sys.stdout.flush()
    return failed[0].status if len(failed) == len(results) else int(bool(failed))


def _show_messages(result: Result, *, is_named: bool, is_told: bool) -> None:
    if result.status and is_told:
        return
    for line in result.stderr.splitlines():
        print(f"{result.label}: {line}" if is_named else line, file=sys.stderr)


def _show_text(result: Result, *, is_named: bool) -> None:
    if is_named and result.stdout:
        print(f"=== {result.label}", flush=True)
    elif is_named and not result.status:
        print(f"{result.label}: done")
    sys.stdout.buffer.write(result.stdout)


def _show_output(output: Output) -> None:
    command: Lister | ShowOne = (
        _Merged(output.columns, output.rows)
        if output.is_list
        else _One(output.columns, output.rows[0])
    )
    command.run(output.options)


def _show_rows(results: Sequence[Result], options: argparse.Namespace) -> None:
    """All rows in one table. The row of an instance that failed says why, if the format can."""
    theirs = [column for result in results if result.output for column in result.output.columns]
    place = INSTANCE if INSTANCE not in theirs else f"In {INSTANCE}"
    columns = dict.fromkeys([place, *theirs])
    failed = [r for r in results if r.status] if options.formatter in _TELLING else []
    if failed:
        columns[ERROR] = None
    if options.columns:
        options.columns += [place, ERROR]
    found: list[dict[str, Any]] = []
    for result in results:
        if result.output:
            for row in result.output.rows:
                values = zip(result.output.columns, row, strict=True)
                found.append({**dict(values), place: result.label})
        elif result in failed:
            found.append({place: result.label, ERROR: result.reason})
    rows = [[row.get(column, NOTHING) for column in columns] for row in found]
    _Merged(list(columns), rows).run(options)


def _show_one(result: Result) -> None:
    """One object, after the name of its instance."""
    if not result.output:
        return
    options = result.output.options
    if options.formatter == "shell":
        options.prefix = f"{options.prefix}{re.sub(r'[^A-Za-z0-9]', '_', result.label)}_"
    else:
        print(f"=== {result.label}")
    _show_output(result.output)
