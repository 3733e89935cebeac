"""The effect of a hanging or slow peer on the proxy of another instance."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from openstackoid.proxy.config import Peer, Proxy, Service
from openstackoid.scope import Scope
from tests.peers import RecordingPeer, healthy

from .harness import Answer, Client, EchoServices, RunningProxy, free_port

HOST, PEER_HOST = "127.0.107.1", "127.0.108.1"
TYPES = ("compute", "identity", "image")
TO_PEER = ("X-Scope", '{"image": "Other"}')
TOKENS = "/identity/v3/auth/tokens"
FOREIGN = Scope({"compute": "Here", "identity": "Other", "image": "Here"}).tag("T")
#: Seconds within which a hanging peer must be detected.
LIMIT = 3.0


@pytest.fixture
def services() -> Iterator[EchoServices]:
    with EchoServices() as echo:
        yield echo


@contextmanager
def proxy_of(peer: str, urls: dict[str, str], state: str = "UP") -> Iterator[RunningProxy]:
    """The proxy of Here, whose services are at *urls*; its peer Other, at *peer*, is in *state*."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="proxy")))
        described = Proxy(
            name="Here",
            bind=f"{HOST}:{free_port(HOST)}",
            services=tuple(Service(kind, f"/{kind}", url) for kind, url in urls.items()),
            peers=(Peer("Other", peer),),
            issuers=("Other",),
            directory=directory,
        )
        running = stack.enter_context(RunningProxy(described))
        running.wait_for_peer("Other", state)
        yield running


@pytest.fixture
def peer() -> Iterator[RecordingPeer]:
    with RecordingPeer("Other", PEER_HOST) as peer:
        yield peer


@pytest.fixture
def here(services: EchoServices, peer: RecordingPeer) -> Iterator[RunningProxy]:
    with proxy_of(peer.address, {kind: services.add(kind, HOST) for kind in TYPES}) as running:
        yield running


def send(proxy: RunningProxy, path: str, *headers: tuple[str, str]) -> tuple[Answer, float]:
    """The answer, and the seconds that it took."""
    client = Client(proxy.proxy.bind)
    began = time.monotonic()
    try:
        return client.send("GET", path, headers), time.monotonic() - began
    finally:
        client.close()


def test_requests_to_a_peer_that_hangs_end_within_three_seconds_and_name_it(
    here: RunningProxy, peer: RecordingPeer
) -> None:
    peer.hang()
    first, seconds = send(here, "/image/v2", TO_PEER)
    assert first.status == 503
    assert "instance Other cannot be reached from Here" in first.json()["error"]["message"]
    assert seconds < LIMIT
    here.wait_for_peer("Other", "DOWN")
    later, seconds = send(here, "/image/v2", TO_PEER)
    assert later.status == 503
    assert seconds < 0.5


def test_a_peer_that_recovers_is_used_again(here: RunningProxy, peer: RecordingPeer) -> None:
    peer.hang()
    here.wait_for_peer("Other", "DOWN")
    peer.recover()
    here.wait_for_peer("Other", "UP")
    assert send(here, "/image/v2", TO_PEER)[0].status == 404


def test_a_validation_at_an_issuer_that_hangs_has_a_deadline(
    here: RunningProxy, peer: RecordingPeer
) -> None:
    peer.hang()
    answer, seconds = send(here, TOKENS, ("X-Auth-Token", "ours"), ("X-Subject-Token", FOREIGN))
    assert answer.status == 503
    assert "does not answer a question about a token" in answer.json()["error"]["message"]
    assert seconds < LIMIT


def test_a_token_that_its_issuer_refuses_is_unknown_and_our_account_is_not_blamed(
    services: EchoServices,
) -> None:
    with refusing(PEER_HOST) as peer:
        urls = {kind: services.add(kind, HOST) for kind in TYPES}
        with proxy_of(peer, urls) as here:
            subject = ("X-Subject-Token", FOREIGN)
            by_itself, _ = send(here, TOKENS, ("X-Auth-Token", "ours"), subject)
            by_its_own, _ = send(here, TOKENS, ("X-Auth-Token", FOREIGN), subject)
    assert by_itself.status == 404
    assert "www-authenticate" not in by_itself.headers
    assert by_its_own.status == 401


def test_few_foreign_tokens_reach_a_service_at_a_time_and_local_requests_pass_them(
    services: EchoServices, peer: RecordingPeer
) -> None:
    release, count, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        nonlocal count, most
        head = connection.recv(65536).decode()
        if "!SCOPE!" in head:
            with lock:
                count += 1
                most = max(most, count)
            release.wait(20)
            with lock:
                count -= 1
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        connection.close()

    with listening(HOST, serve) as image:
        urls = {kind: services.add(kind, HOST) for kind in TYPES if kind != "image"}
        with (
            proxy_of(peer.address, {**urls, "image": f"http://{image}"}) as here,
            ThreadPoolExecutor(10) as pool,
        ):
            foreign = [
                pool.submit(send, here, "/image/v2", ("X-Auth-Token", FOREIGN)) for _ in range(10)
            ]
            time.sleep(0.5)
            local, _ = send(here, "/image/v2", ("X-Auth-Token", "T"))
            waited_for = [job for job in foreign if job.done()]
            release.set()
            statuses = [job.result()[0].status for job in foreign]
    assert most == 2
    assert (local.status, statuses) == (200, [200] * 10)
    assert waited_for == []


def test_the_proxy_waits_for_a_slow_issuer(services: EchoServices) -> None:
    with slow(PEER_HOST) as peer:
        urls = {kind: services.add(kind, HOST) for kind in TYPES}
        with proxy_of(peer, urls) as here:
            answer, seconds = send(
                here, TOKENS, ("X-Auth-Token", "a"), ("X-Subject-Token", FOREIGN)
            )
    assert answer.status == 200
    assert seconds > LIMIT


def test_the_proxy_waits_for_a_slow_peer(services: EchoServices) -> None:
    """The answer takes longer than any health check, and the transfer makes progress."""
    with slow(PEER_HOST) as peer:
        urls = {kind: services.add(kind, HOST) for kind in TYPES}
        with proxy_of(peer, urls) as here:
            host, _, port = here.proxy.bind.rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            connection.request("GET", "/image/v2", headers=dict([TO_PEER]))
            assert connection.getresponse().read() == b"slow!"
            connection.close()


@contextmanager
def slow(host: str) -> Iterator[str]:
    """The address of a healthy peer that thinks for long, and sends its answers slowly."""

    def serve(connection: socket.socket) -> None:
        head = connection.recv(65536).decode()
        if "/healthcheck" not in head:
            time.sleep(LIMIT + 1)
        body = b"slow!" if "/healthcheck" not in head else healthy("Other")
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length)
        for character in body:
            connection.sendall(bytes([character]))
            if "/healthcheck" not in head:
                time.sleep(0.3)
        connection.close()

    with listening(host, serve) as address:
        yield address


@contextmanager
def listening(host: str, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """An address whose every connection *serve* handles in a thread of its own."""
    with socket.create_server((host, 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield "{}:{}".format(*server.getsockname())
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def refusing(host: str) -> Iterator[str]:
    """A healthy peer whose keystone knows none of the tokens."""

    def serve(connection: socket.socket) -> None:
        is_check = "/healthcheck" in connection.recv(65536).decode()
        status, body = ("200 OK", healthy("Other")) if is_check else ("401 Nope", b"")
        head = f"HTTP/1.1 {status}\r\nWWW-Authenticate: Keystone\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
        connection.close()

    with listening(host, serve) as address:
        yield address


def test_who_answers_but_is_no_proxy_of_that_instance_is_not_believed(
    services: EchoServices,
) -> None:
    urls = {kind: services.add(kind, HOST) for kind in TYPES}
    for instance in ("", "Third"):
        another = services.add("whatever", PEER_HOST, instance).removeprefix("http://")
        with proxy_of(another, urls, "DOWN") as here:
            answer, _ = send(here, "/image/v2", TO_PEER)
        assert answer.status == 503
        assert "instance Other cannot be reached" in answer.json()["error"]["message"]


def test_the_health_check_names_the_instance(here: RunningProxy) -> None:
    answer, _ = send(here, "/healthcheck")
    assert (answer.status, answer.json()) == (200, {"instance": "Here"})
    assert "/healthcheck" not in here.log.read_text()


def test_only_peers_and_named_forwarders_determine_links(
    services: EchoServices, peer: RecordingPeer
) -> None:
    urls = {kind: services.add(kind, HOST) for kind in TYPES}
    with proxy_of(peer.address, urls) as here:
        header = ("X-Forwarded-Proto", "https")
        refused = dict(send(here, "/image/v2", header)[0].json()["headers"])
        here.proxy = replace(here.proxy, forwarders=("127.0.0.0/29",))
        here.reload()
        believed = dict(send(here, "/image/v2", header)[0].json()["headers"])
    assert "x-forwarded-proto" not in refused
    assert believed["x-forwarded-proto"] == "https"
