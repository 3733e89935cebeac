"""Find the program on a port by asking the kernel."""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest

from lab import ports

ADDRESS = "127.0.0.1"


@pytest.mark.parametrize("bound", [ADDRESS, ""], ids=["this address", "every address"])
def test_a_port_that_somebody_listens_on_is_taken_by_them(bound: str) -> None:
    with socket.create_server((bound, 0)) as server:
        who = ports.taker(ADDRESS, server.getsockname()[1])
    assert who is not None
    assert who.endswith(f"(process {os.getpid()})")


def test_the_same_port_of_another_address_is_free() -> None:
    with socket.create_server((ADDRESS, 0)) as server:
        other = f"127.0.{random.randrange(100, 250)}.1"
        assert ports.taker(other, server.getsockname()[1]) is None


def test_a_port_is_free_again_once_its_server_has_closed_it() -> None:
    with socket.create_server((ADDRESS, 0)) as server:
        where = server.getsockname()
        with socket.create_connection(where):
            server.accept()[0].close()
    assert ports.taker(*where) is None


def test_a_port_that_is_given_back_a_moment_later_is_free() -> None:
    """Bound, but without a listener: so a port looks while the kernel ends its program."""
    with socket.socket() as ending:
        ending.bind((ADDRESS, 0))
        where = ending.getsockname()
        threading.Timer(0.3, ending.close).start()
        assert ports.taker(*where) is None


def test_a_port_that_is_bound_for_longer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "PATIENCE", 0.2)
    with socket.socket() as bound:
        bound.bind((ADDRESS, 0))
        assert ports.taker(*bound.getsockname()) == "another program"
