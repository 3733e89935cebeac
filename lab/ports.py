"""Find the program that has taken a port."""

from __future__ import annotations

import socket

import psutil


def taker(address: str, port: int) -> str | None:
    """The program that has taken *port* of *address*; None if the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return _listener(address, port) or "another program"
    return None


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
