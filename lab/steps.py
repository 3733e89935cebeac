"""The steps that ``up`` shows: a name, a tick and a time each; the rest goes into log files."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lab.errors import LabError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: The name that is shown for steps without an instance.
EVERYBODY = "lab"
#: How many of its last log lines a failed step shows.
_LAST_LINES = 10


class Step:
    """One running step; its log goes into its instance's log file."""

    def __init__(self, instance: str, title: str, file: IO[str], lock: threading.Lock) -> None:
        self.instance = instance
        self.title = title
        self.started = time.monotonic()
        self.lines: list[str] = []
        self._file = file
        self._lock = lock

    def log(self, text: str) -> None:
        """Log *text*, one line or several."""
        with self._lock:
            for line in text.splitlines() or [""]:
                self.lines = [*self.lines[1 - _LAST_LINES :], line]
                self._file.write(f"{time.strftime('%H:%M:%S')} {self.title}: {line}\n")
            self._file.flush()


class Steps:
    """Shows steps of all threads as they end; live on a terminal, as plain lines elsewhere.

    >>> with Steps(Path(".lab/log")) as steps, steps.step("InstanceOne", "databases") as step:
    ...     remote.run(["mariadb-install-db"], on_line=step.log)
    """

    def __init__(self, directory: Path, console: Console | None = None) -> None:
        """Keep the logs in *directory*, one file for each instance and one for the lab."""
        # Slow to import, and commands without steps import this module too.
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415

        self.directory = directory
        self.console = console or Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._running: list[Step] = []
        self._files: dict[str, IO[str]] = {}
        self._lock = threading.Lock()
        self._live = Live(
            console=self.console, get_renderable=self._table, refresh_per_second=5, transient=True
        )

    def __enter__(self) -> Steps:
        """Show running steps live on a terminal."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the live display, and close the logs."""
        self._live.stop()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def log_path(self, instance: str | None) -> Path:
        """The log file of *instance*, or for None, of the lab as a whole."""
        return self.directory / f"{instance or EVERYBODY}.log"

    @contextmanager
    def step(self, instance: str | None, title: str) -> Iterator[Step]:
        """Time the body as one step of *instance*, or of the lab as a whole.

        :raises LabError: when the body fails; the screen then shows the last lines of the log, and
            its path.
        """
        step = self.begin(instance, title)
        try:
            yield step
        except BaseException as error:
            self.fail(step, error)
            if isinstance(error, Exception) and not isinstance(error, LabError):
                raise LabError(
                    f"{step.instance}: {title} failed: {type(error).__name__}: "
                    f"{' '.join(str(error).split())}; see {self.log_path(instance)}"
                ) from error
            raise
        self.end(step)

    def begin(self, instance: str | None, title: str) -> Step:
        """Show a running step of *instance*, until :meth:`end` or :meth:`fail`."""
        step = Step(instance or EVERYBODY, title, self._file(instance), self._lock)
        step.log("begins")
        step.lines.clear()
        with self._lock:
            self._running.append(step)
        return step

    def end(self, step: Step) -> None:
        """Show that *step* has succeeded."""
        step.log("ends well")
        self._end(step)

    def fail(self, step: Step, error: BaseException) -> None:
        """Show that *step* has failed with *error*, and log the error."""
        last = list(step.lines) if isinstance(error, Exception) else None
        step.log("".join(traceback.format_exception(error)).rstrip())
        self._end(step, failed=True, last=last)

    def say(self, text: str) -> None:
        """Show one line that is not a step."""
        self.console.print(text, markup=False)

    def _end(self, step: Step, failed: bool = False, last: Sequence[str] | None = None) -> None:
        seconds = time.monotonic() - step.started
        with self._lock:
            self._running.remove(step)
            self.console.print(_line(step.instance, step.title, "✘" if failed else "✔", seconds))
            for line in last or ():
                self.console.print(f"    {line}", markup=False, style="dim")
            if last is not None:
                self.console.print(f"    the whole log: {self.directory / step.instance}.log")

    def _file(self, instance: str | None) -> IO[str]:
        path = self.log_path(instance)
        with self._lock:
            if path.name not in self._files:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files[path.name] = path.open("a", encoding="utf-8")
            return self._files[path.name]

    def _table(self) -> Table:
        from rich.table import Table  # noqa: PLC0415

        table = Table.grid()
        for step in list(self._running):
            table.add_row(_line(step.instance, step.title, "…", time.monotonic() - step.started))
        return table


def _line(instance: str, title: str, mark: str, seconds: float) -> str:
    colour = {"✔": "green", "✘": "red"}.get(mark, "yellow")
    return f"{instance:<16} {title:<34} [{colour}]{mark}[/{colour}] {seconds:6.1f} s"
