"""Record what a terminal shows, as an asciicast of version 2.

The format: https://docs.asciinema.org/manual/asciicast/v2/
"""

from __future__ import annotations

import codecs
import json
import os
import pty
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lab.errors import LabError

_TERM = "xterm-256color"


@contextmanager
def recorded(path: Path, title: str, argv: Sequence[str], size: tuple[int, int]) -> Iterator[None]:
    """Record in the file *path* what *argv* shows on a terminal of *size*, columns and lines.

    *argv* has to show something at once; at the end, it is terminated.

    :raises LabError: when the file cannot be written.
    """
    columns, lines = size
    header = {
        "version": 2,
        "width": columns,
        "height": lines,
        "timestamp": int(time.time()),
        "title": title,
        "env": {"TERM": _TERM},
    }
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror}") from error
    with file:
        file.write(json.dumps(header) + "\n")
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (lines, columns))
        environment = {key: value for key, value in os.environ.items() if key != "TMUX"}
        client = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"TERM": _TERM},
            start_new_session=True,
        )
        os.close(theirs)
        shown = threading.Event()
        reader = threading.Thread(target=_copy, args=(ours, file, shown))
        reader.start()
        try:
            shown.wait()
            yield
        finally:
            client.terminate()
            client.wait()
            reader.join()
            os.close(ours)


def _copy(terminal: int, file: IO[str], shown: threading.Event) -> None:
    """Write each output of *terminal* as an event, until it is closed."""
    started = time.monotonic()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while data := os.read(terminal, 65536):
            if text := decoder.decode(data):
                event = [round(time.monotonic() - started, 6), "o", text]
                file.write(json.dumps(event, ensure_ascii=False) + "\n")
            shown.set()
    except OSError:
        # EIO: the last process has closed it.
        pass
    finally:
        shown.set()
