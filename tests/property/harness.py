"""Real HAProxies on loopback addresses, with services behind them that echo requests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from openstackoid.proxy.config import Proxy, peer_states, reload, write
from openstackoid.proxy.log import LogLine, parse_log_line

#: The HAProxy to run; set it to test another release than the system's.
HAPROXY = os.environ.get("HAPROXY", "haproxy")
#: Seconds that anything may take to start.
PATIENCE = 20.0
#: The host that clients ask for.
HOST = "cloud.example"


def free_port(host: str) -> int:
    """A port that nobody listens on at *host*."""
    return free_ports(host, 1)[0]


def free_ports(host: str, count: int) -> list[int]:
    """Different ports that nobody listens on at *host*."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for *condition*; a timeout names *what*."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.02)


class _Echo(asyncio.Protocol):
    """Answers each request with its content; a POST gets a 201 with a token, a question about a
    token gets the token. A request with an id gets it back. With an *instance*, it passes for the
    proxy of that.
    """

    def __init__(self, name: str, instance: str) -> None:
        self.name = name
        self.instance = instance
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = [line.split(":", 1) for line in lines[1:]]
            pairs = [(name.lower(), value.strip(" \t")) for name, value in headers]
            length = int(dict(pairs).get("content-length", 0))
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.answer(lines[0], pairs, rest[:length])

    def answer(self, line: str, headers: list[tuple[str, str]], body: bytes) -> None:
        method, path, _ = line.split(" ")
        facts = {
            "service": self.name,
            "instance": self.instance,
            "method": method,
            "path": path,
            "headers": headers,
            "body": body.decode("latin-1"),
        }
        text = json.dumps(facts).encode()
        status = "201 Created\r\nX-Subject-Token: FRESH" if method == "POST" else "200 OK"
        subject = dict(headers).get("x-subject-token")
        if method in ("GET", "HEAD") and subject is not None:
            status += f"\r\nX-Subject-Token: {subject}"
        if request_id := dict(headers).get("x-openstack-request-id"):
            status += f"\r\nX-OpenStack-Request-ID: {request_id}"
        length = str(len(text)).encode()
        sent = b"" if method == "HEAD" else text
        self.transport.write(
            b"HTTP/1.1 "
            + status.encode("latin-1")
            + b"\r\nContent-Length: "
            + length
            + b"\r\n\r\n"
            + sent
        )


class EchoServices:
    """One thread that plays any number of services."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> EchoServices:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, name: str, host: str, instance: str = "") -> str:
        """Start a service called *name*, or a proxy of *instance*, and return its URL."""
        starting = self._loop.create_server(lambda: _Echo(name, instance), host, 0)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(PATIENCE)
        return "http://{}:{}".format(*server.sockets[0].getsockname())


class RunningProxy:
    """A HAProxy with the configuration of *proxy*."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.log = proxy.directory / "haproxy.log"

    def __enter__(self) -> RunningProxy:
        write(self.proxy)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [HAPROXY, "-W", "-db", "-f", str(self.proxy.directory / "haproxy.cfg")],
                stdout=log,
                stderr=log,
            )
        wait_until(f"the proxy of {self.proxy.name}: {self.log}", self._answers)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        host, _, port = self.proxy.bind.rpartition(":")
        with socket.socket() as probe:
            # HAProxy binds its ports before its sockets
            return probe.connect_ex((host, int(port))) == 0 and self.proxy.socket.exists()

    def wait_for_peer(self, name: str, state: str) -> None:
        """Wait until the proxy sees peer *name* in *state*."""
        wait_until(
            f"peer {name} to be {state}",
            lambda: peer_states(self.proxy.socket)[name] == state,
        )

    def reload(self) -> None:
        """Write the configuration again and reload it."""
        write(self.proxy)
        reload(self.process.pid, self.proxy.socket)

    def log_lines(self) -> list[LogLine]:
        """The requests that were logged so far."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [parsed for line in lines if (parsed := parse_log_line(line))]


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


class Client:
    """An HTTP client that sends anything, however wrong, over one connection from *source*."""

    def __init__(self, address: str, source: str = "") -> None:
        host, _, port = address.rpartition(":")
        self.address = (host, int(port))
        self.source = source
        self.connection: socket.socket | None = None

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self.connection:
            self.connection.close()
            self.connection = None

    def send(
        self,
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...] = (),
        body: str = "",
        host: str = HOST,
    ) -> Answer:
        """Send a request, encoded as Latin-1, and read the response."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.send_raw(("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1"), method)

    def send_raw(self, request: bytes, method: str = "GET") -> Answer:
        """Send these bytes and read the response."""
        if self.connection is None:
            self.connection = socket.create_connection(self.address, PATIENCE, (self.source, 0))
        self.connection.sendall(request)
        buffer = b""
        while b"\r\n\r\n" not in buffer:
            buffer += self._receive()
        head, _, body = buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:])
        headers = {name.lower(): value.strip() for name, value in pairs}
        if method != "HEAD":
            while len(body) < int(headers.get("content-length", 0)):
                body += self._receive()
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(lines[0].split(" ")[1]), headers, body)

    def _receive(self) -> bytes:
        assert self.connection is not None
        data = self.connection.recv(65536)
        if not data:
            self.close()
            raise ConnectionError("the proxy closed the connection without an answer")
        return data


@contextmanager
def listening_but_deaf(host: str) -> Iterator[str]:
    """An address that neither accepts nor refuses connections, like a host that is gone."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            for filler in fillers:
                filler.close()
