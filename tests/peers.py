"""A peer for tests, which records its requests and can stop answering."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

#: The path of a proxy's health check.
HEALTH = "/healthcheck"


def healthy(name: str) -> bytes:
    """What the proxy of the instance *name* answers to a health check."""
    return json.dumps({"instance": name}).encode()


@dataclass(frozen=True)
class Recorded:
    """One recorded request; the names of *headers* are in lower case."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)


class RecordingPeer:
    """A hostile proxy in the place of that of the instance *name*, which records its requests.

    It passes health checks, and answers every other request with 404. After :meth:`hang`, it
    accepts connections but answers nothing, until :meth:`recover`. With *tls*, it speaks TLS.

    >>> with RecordingPeer("InstanceTwo", "127.0.2.1", 8888) as peer:
    ...     print(peer.address, peer.requests)
    127.0.2.1:8888 []
    """

    def __init__(
        self, name: str, host: str, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._name = name
        self.requests: list[Recorded] = []
        self._answers = threading.Event()
        self._answers.set()
        self._connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer((host, port), self._handler())
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """Host and port."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def hang(self) -> None:
        """Answer nothing from now on."""
        self._answers.clear()

    def recover(self) -> None:
        """Answer again, including requests that wait."""
        self._answers.set()

    def __enter__(self) -> RecordingPeer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.recover()
        self._server.shutdown()
        self._server.server_close()
        # A proxy would go on with connections that it kept.
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                peer._connections.add(self.connection)

            def finish(self) -> None:
                peer._connections.discard(self.connection)
                super().finish()

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # The client has given up.
                    self.close_connection = True

            def answer(self) -> None:
                if self.path != HEALTH:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    peer.requests.append(Recorded(self.command, self.path, headers))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                peer._answers.wait()
                body = healthy(peer._name) if self.path == HEALTH else b""
                self.send_response(200 if self.path == HEALTH else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: pytest shows enough."""

        return Handler
