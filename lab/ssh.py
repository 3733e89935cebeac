"""Run commands on an instance's host, with fabric and the provider's ``ssh_config``."""

from __future__ import annotations

import contextlib
import io
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from lab.errors import LabError

if TYPE_CHECKING:
    import fabric

T = TypeVar("T")

#: How many of a failed command's last lines the error shows.
_LAST_LINES = 3

# invoke decodes each block that it reads, even if the block ends inside a character. An encoding
# with one byte per character preserves the bytes.
_BYTES = "latin-1"


@dataclass(frozen=True)
class Result:
    """A command's exit status and output."""

    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether the command ended with status 0."""
        return self.status == 0


class Remote:
    """One host, called *name* in *ssh_config*; connects on first use.

    *mend* tells the user what to do when the host is unreachable.

    >>> Remote(Path(".lab/ssh_config"), "InstanceOne").run(["hostname"]).status
    0
    """

    def __init__(self, ssh_config: Path, name: str, mend: str = "run `./setup-env.py up`") -> None:
        self.name = name
        self._mend = mend
        self._ssh_config = ssh_config
        self._opened: fabric.Connection | None = None
        self._opening = threading.Lock()

    def run(
        self,
        argv: Sequence[str],
        stdin: str | None = None,
        on_line: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Result:
        """Run *argv* unchanged, with *env* added; *on_line* gets each line of output at once.

        :raises LabError: when the host is unreachable or, with *check*, the status is not 0.
        """
        assignments = [f"{key}={value}" for key, value in (env or {}).items()]
        words = ["env", *assignments, *argv] if assignments else list(argv)
        streams = [_Lines(on_line), _Lines(on_line)] if on_line else [None, None]
        outcome = self._guarded(
            lambda connection: connection.run(
                shlex.join(words),
                hide=on_line is None,
                warn=True,
                encoding=_BYTES,
                in_stream=io.StringIO(_as_bytes(stdin or "")),
                out_stream=streams[0],
                err_stream=streams[1],
            )
        )
        for stream in filter(None, streams):
            stream.finish()
        result = Result(outcome.return_code, _as_text(outcome.stdout), _as_text(outcome.stderr))
        if check and not result.ok:
            last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-_LAST_LINES:]
            raise LabError(
                f"{self.name}: {shlex.join(argv)} ended with status {result.status}: "
                f"{' / '.join(last) or 'no output'}"
            )
        return result

    def put(self, text: str, path: Path | str, mode: int = 0o644) -> None:
        """Write *text* to the file *path* on the host, atomically, with *mode*.

        :raises LabError: when the host is unreachable or the file cannot be written.
        """
        draft = f"{path}.new"

        def write(connection: fabric.Connection) -> None:
            sftp = connection.sftp()
            with sftp.open(draft, "w") as file:
                file.chmod(mode)
                file.write(text.encode())
            sftp.posix_rename(draft, str(path))

        self._guarded(write)

    def upload(self, content: bytes, path: Path | str) -> None:
        """Write *content* to the file *path* on the host.

        :raises LabError: when the host is unreachable or the file cannot be written.
        """
        self._guarded(lambda connection: connection.sftp().putfo(io.BytesIO(content), str(path)))

    def _guarded(self, action: Callable[[fabric.Connection], T]) -> T:
        import paramiko  # noqa: PLC0415 - slow to import

        try:
            return action(self._connection())
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise LabError(
                f"{self.name}: ssh failed: {error or type(error).__name__}; {self._mend}"
            ) from error

    def _connection(self) -> fabric.Connection:
        with self._opening:
            if self._opened is None or not self._opened.is_connected:
                self._opened = _open(self._ssh_config, self.name)
            return self._opened


def _open(ssh_config: Path, name: str) -> fabric.Connection:
    """A connection to *name* that accepts only the known hosts of *ssh_config*."""
    import fabric  # noqa: PLC0415 - slow to import
    import paramiko  # noqa: PLC0415

    if not ssh_config.exists():
        raise LabError(f"{name}: {ssh_config} is missing: run `./setup-env.py up`")

    class Runner(fabric.runners.Remote):  # type: ignore[misc]
        """Feeds standard input in blocks; invoke itself takes 10 ms for each character."""

        def read_our_stdin(self, input_: IO[str]) -> str:
            return input_.read(1 << 15)

        def _write_proc_stdin(self, data: bytes) -> None:
            # A command may end before it has read everything, as in a pipe.
            with contextlib.suppress(OSError):
                super()._write_proc_stdin(data)

    config = fabric.Config(
        runtime_ssh_path=str(ssh_config), overrides={"runners": {"remote": Runner}}
    )
    connection = fabric.Connection(name, config=config, connect_timeout=10)
    # Vagrant's own configuration disables the check: Vagrant has just made the machine.
    if connection.ssh_config.get("stricthostkeychecking") not in ("no", "false", "off"):
        for keys in connection.ssh_config.get("userknownhostsfile", "").split():
            if Path(keys).exists():
                connection.client.load_host_keys(keys)
        connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    connection.open()
    return connection


def _as_bytes(text: str) -> str:
    return text.encode().decode(_BYTES)


def _as_text(characters: str) -> str:
    return characters.encode(_BYTES).decode(errors="replace")


class _Lines:
    """A stream that passes its text on line by line."""

    encoding = _BYTES

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = ""

    def write(self, text: str) -> int:
        """Accept *text*, and pass complete lines on at once."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._on_line(_as_text(line))
        return len(text)

    def flush(self) -> None:
        """Do nothing: an incomplete line waits for its end."""

    def finish(self) -> None:
        """Pass on an incomplete last line."""
        if self._rest:
            self._on_line(_as_text(self._rest))
