"""Find the program that has taken a port."""

from __future__ import annotations

import socket
import time

import psutil

#: For how many seconds the port of a program that was killed may be taken still.
PATIENCE = 2.0


def taker(address: str, port: int) -> str | None:
    """The program that has taken *port* of *address*; None if the port is free.

    The kernel gives a port back a moment after its program has ended.
    """
    deadline = time.monotonic() + PATIENCE
    while not _is_free(address, port):
        listener = _listener(address, port)
        if listener:
            return listener
        if time.monotonic() > deadline:
            return "another program"
        time.sleep(0.05)
    return None


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _listener(address: str, port: int) -> str | None:
    everywhere = ("0.0.0.0", "::", f"::ffff:{address}")  # noqa: S104 - compared with, not bound to
    for connection in psutil.net_connections("tcp"):
        where = connection.laddr
        if (
            connection.status == psutil.CONN_LISTEN
            and where
            and where.port == port
            and where.ip in (address, *everywhere)
            and connection.pid
        ):
            try:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
            except psutil.NoSuchProcess:
                return None
    return None
