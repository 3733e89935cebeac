"""One standard input for several forks: each reads all of it, and a question is asked once."""

from __future__ import annotations

import fcntl
import getpass
import io
import os
import pickle
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast


class SharedInput:
    """The standard input of this process, for its forks.

    A fork that reads a pipe keeps a copy for the others. Nothing is read before a fork wants it.
    """

    def __init__(self) -> None:
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last fork
        # In memory, since answers may be passwords: whether the copy is whole, and the answers.
        self._notes = os.memfd_create("openstackoid")

    def use(self) -> None:
        """Have this fork share its standard input and its questions with the others."""
        answered = 0
        ask = getpass.getpass

        def ask_once(prompt: str = "Password: ", stream: Any = None) -> str:  # noqa: ANN401
            nonlocal answered
            with self._locked() as notes:
                answers = notes.setdefault("answers", [])
                if answered == len(answers):
                    answers.append(ask(prompt, stream))
                answered += 1
                return cast("str", answers[answered - 1])

        getpass.getpass = ask_once
        if sys.stdin is not None and not sys.stdin.isatty():
            sys.stdin = cast("Any", _Lazy(self))

    def open(self) -> io.TextIOWrapper:
        """All of the standard input, at a position of its own."""
        if stat.S_ISREG(os.fstat(0).st_mode):
            return _reopen(0, os.lseek(0, 0, os.SEEK_CUR))
        with self._locked() as notes:
            if not notes.get("is whole"):
                with os.fdopen(0, "rb", closefd=False) as stream:
                    shutil.copyfileobj(stream, self._copy)
                self._copy.flush()
                notes["is whole"] = True
        return _reopen(self._copy.fileno(), 0)

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """What the forks have noted, while no other fork can."""
        # Forks share an open file, so that only a lock of a process keeps them apart.
        fcntl.lockf(self._notes, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._notes).st_size
            kept = os.pread(self._notes, size, 0)
            notes = pickle.loads(kept) if kept else {}  # noqa: S301 - our own forks'
            yield notes
            os.pwrite(self._notes, pickle.dumps(notes), 0)
        finally:
            fcntl.lockf(self._notes, fcntl.LOCK_UN)


class _Lazy:
    """A standard input that is opened once it is used."""

    def __init__(self, source: SharedInput) -> None:
        self._source = source

    def isatty(self) -> bool:
        """It is not: a terminal stays as it is."""
        return False

    @cached_property
    def _stream(self) -> io.TextIOWrapper:
        return self._source.open()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


def _reopen(descriptor: int, position: int) -> io.TextIOWrapper:
    """The file behind *descriptor* with a position of its own, which dup(2) would share."""
    stream = Path(f"/proc/self/fd/{descriptor}").open("rb")  # noqa: SIM115 - the caller's
    stream.seek(position)
    return io.TextIOWrapper(stream)
