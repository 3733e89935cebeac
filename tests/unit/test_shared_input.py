"""Forks that share a standard input."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

#: Three forks run the code of the first argument, and the process prints what they print.
FORKS = """
import getpass, os, sys
from openstackoid.shared_input import SharedInput
shared = SharedInput()
for _ in range(3):
    if os.fork() == 0:
        shared.use()
        line = eval(sys.argv[1])
        os.write(1, f"<{line}>\\n".encode())
        os._exit(0)
for _ in range(3):
    os.wait()
"""
READ = "sys.stdin.buffer.read().decode()"
DIGEST = "__import__('hashlib').sha256(sys.stdin.buffer.read()).hexdigest()"


def _forks(code: str, **options: object) -> str:
    command = [sys.executable, "-c", FORKS, code]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True, **options)  # type: ignore[call-overload]
    found: str = done.stdout.decode()
    return found


@pytest.mark.parametrize("size", [0, 5, 300_000])
def test_each_fork_reads_a_whole_pipe(size: int) -> None:
    content = os.urandom(size)
    assert _forks(DIGEST, input=content) == f"<{hashlib.sha256(content).hexdigest()}>\n" * 3


def test_each_fork_reads_the_rest_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"begun, the rest")
    with path.open("rb", buffering=0) as stream:
        stream.seek(7)
        assert _forks(READ, stdin=stream) == "<the rest>\n" * 3


@pytest.mark.parametrize(
    ("code", "each"),
    [
        ("[sys.stdin.readline(), sys.stdin.readline()]", "['a\\n', 'b']"),
        ("list(sys.stdin)", "['a\\n', 'b']"),
        ("sys.stdin.read(1) + sys.stdin.read()", "a\nb"),
        ("sys.stdin.isatty()", "False"),
    ],
)
def test_a_fork_reads_as_it_likes(code: str, each: str) -> None:
    assert _forks(code, input=b"a\nb") == f"<{each}>\n" * 3


def test_what_no_fork_reads_is_left_to_the_next_program() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"for the next one")
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert _forks("1", stdin=stream) == "<1>\n" * 3
        assert stream.read() == b"for the next one"


def test_a_closed_input_stays_closed() -> None:
    assert _forks("sys.stdin", preexec_fn=lambda: os.close(0)) == "<None>\n" * 3


def test_a_question_is_asked_once() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        code = "[getpass.getpass('New: '), getpass.getpass('Repeat: ')]"
        os.execv(sys.executable, [sys.executable, "-c", FORKS, code])
    said = b""
    for question, answer in ((b"New: ", b"first\n"), (b"Repeat: ", b"second\n")):
        while question not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, answer)
    while said.count(b">") < 3:
        said += os.read(terminal, 1000)
    os.waitpid(pid, 0)
    os.close(terminal)
    assert said.count(b"New: ") == said.count(b"Repeat: ") == 1
    assert said.count(b"<['first', 'second']>") == 3
