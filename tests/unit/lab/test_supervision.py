"""A supervisord that is missing, and one that is unwell."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import supervision
from lab.supervision import SupervisionError, Supervisor


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a name that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="oid-") as name:
        yield Path(name)


@pytest.fixture
def supervisor(directory: Path) -> Supervisor:
    return Supervisor(directory / "socket", directory / "conf", directory / "output")


@pytest.fixture
def listener(directory: Path) -> Iterator[socket.socket]:
    """A listener at supervisord's socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(directory / "socket"))
        one.listen()
        yield one


def answer(listener: socket.socket, text: bytes) -> None:
    def serve() -> None:
        for _ in range(2):
            connection, _address = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(text)

    threading.Thread(target=serve, daemon=True).start()


def test_nothing_runs_without_a_socket(supervisor: Supervisor) -> None:
    assert supervisor.states() == {}


def test_nothing_runs_behind_a_leftover_socket(
    supervisor: Supervisor, listener: socket.socket
) -> None:
    listener.close()
    assert supervisor.states() == {}


def test_a_silent_supervisord_is_not_one_without_programs(
    supervisor: Supervisor, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "PATIENCE", 0.2)
    with pytest.raises(SupervisionError, match=r"supervisord does not answer .*timed out"):
        supervisor.states()
    assert not supervisor.running()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense\r\n",
        b"HTTP/1.0 500 Broken\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n?",
    ],
)
def test_a_supervisord_that_answers_nonsense_is_not_one_without_programs(
    supervisor: Supervisor, listener: socket.socket, text: bytes
) -> None:
    answer(listener, text)
    with pytest.raises(SupervisionError, match="supervisord does not answer"):
        supervisor.states()
    assert not supervisor.running()


def test_a_second_supervisord_is_not_started_beside_an_unwell_one(
    supervisor: Supervisor,
    listener: socket.socket,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervision, "PATIENCE", 0.2)
    with pytest.raises(SupervisionError, match=r"does not answer .*see .*output"):
        supervisor.start({})
    assert (directory / "socket").is_socket()
    assert not (directory / "output").exists()


def test_a_program_cannot_be_started_if_no_supervisord_runs(supervisor: Supervisor) -> None:
    with pytest.raises(SupervisionError, match="supervisord does not answer"):
        supervisor.ensure(["mariadb"])
