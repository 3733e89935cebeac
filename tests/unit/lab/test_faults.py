"""How people write faults, and what one does to connections that pass its relay."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import faults
from lab.cli import commands
from lab.faults import Fault, measure
from lab.wheels.relay import LIE, RETRANSMISSION, Relay


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("80ms", faults.TIMES, 0.08),
        ("1.5s", faults.TIMES, 1.5),
        (".5S", faults.TIMES, 0.5),
        ("64kbit", faults.RATES, 64e3),
        ("1mbit", faults.RATES, 1e6),
        ("5%", faults.SHARES, 0.05),
        ("0.1%", faults.SHARES, 0.001),
    ],
)
def test_a_measure_is_a_number_and_a_unit(text: str, units: dict[str, float], value: float) -> None:
    assert measure(text, units) == pytest.approx(value)


@pytest.mark.parametrize("text", ["80", "ms", "-1ms", "0ms", "1 ms", "1e3ms", "1kbit", "1..5s", ""])
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="one of the units ms, s"):
        measure(text, faults.TIMES)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("cut"), "cut"),
        (Fault("slow", delay=0.08, jitter=0.02), "delay 80ms, jitter 20ms"),
        (Fault("slow", rate=1.5e6, loss=0.05), "rate 1.5mbit, loss 5%"),
        (Fault("slow", rate=64e3), "rate 64kbit"),
    ],
)
def test_a_fault_reads_as_it_was_written(fault: Fault, text: str) -> None:
    assert str(fault) == text
    assert Fault.from_json(fault.to_json()) == fault


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("InstanceOne InstanceTwo --delay 80", "'80' is not a positive number"),
        ("InstanceOne InstanceTwo --rate 1ms", "units kbit, mbit"),
        ("InstanceOne InstanceTwo --loss 100%", "--loss has to be less than 100%: use --hang"),
        ("InstanceOne InstanceTwo --jitter 20ms", "--jitter varies --delay"),
        ("InstanceOne InstanceTwo --delay 10ms --jitter 20ms", "--jitter varies --delay"),
        ("InstanceOne InstanceTwo --cut --delay 80ms", "--cut stands alone"),
        ("InstanceOne InstanceTwo --hang --cut", "stands alone: drop the other faults"),
        ("InstanceOne InstanceTwo --heal --cut", "--heal takes a fault away"),
        ("InstanceOne --cut", "name two instances"),
        ("InstanceOne --heal", "name two instances"),
        ("InstanceOne InstanceTwo", "say what happens to the link"),
        ("--cut", "name two instances"),
    ],
)
def test_options_that_make_no_fault_are_refused(tmp_path: Path, line: str, what: str) -> None:
    (tmp_path / "lab.yaml").write_text("instances: [{name: InstanceOne}, {name: InstanceTwo}]\n")
    refused = CliRunner().invoke(commands, ["net", *line.split()], obj=tmp_path)
    assert refused.exit_code == 2
    assert what in refused.output


@dataclass(frozen=True)
class Started:
    """A relay that runs, in front of a peer that returns what it gets."""

    address: tuple[str, int]
    process: subprocess.Popen[bytes]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 10)


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """A peer that returns what it gets, until the relay has ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=_echo, args=[connection], daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def start(peer: socket.socket) -> Iterator[Callable[[Fault], Started]]:
    """Starts the relay of a link to the peer that has a fault."""
    with contextlib.ExitStack() as stack:

        def begin(fault: Fault) -> Started:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            if fault.kind != "cut":
                listener.listen()
            address, descriptor = listener.getsockname(), listener.fileno()
            target = f"127.0.0.1:{peer.getsockname()[1]}"
            one = Relay("Peer", fault, "127.0.0.1", target, False, descriptor, address[1])
            command = [sys.executable, "-m", "lab.wheels.relay", one.to_json()]
            process = subprocess.Popen(command, pass_fds=[descriptor])
            stack.callback(process.wait)
            stack.callback(process.kill)
            listener.close()
            return Started(address, process)

        yield begin


def _exchange(connection: socket.socket, size: int = 1) -> float:
    """The seconds until *size* bytes have gone to the peer and come back."""
    began = time.monotonic()
    data = bytes(size)
    writer = threading.Thread(target=connection.sendall, args=[data])
    writer.start()
    received = b""
    while len(received) < size:
        received += connection.recv(65536)
    writer.join()
    assert received == data
    return time.monotonic() - began


def test_a_delay_makes_each_round_trip_longer(start: Callable[[Fault], Started]) -> None:
    with start(Fault("slow", delay=0.1)).connect() as connection:
        _exchange(connection)
        trips = [_exchange(connection) for _ in range(3)]
    assert min(trips) >= 0.1
    assert min(trips) < 0.15


def test_a_delay_keeps_the_order_whatever_its_jitter(start: Callable[[Fault], Started]) -> None:
    with start(Fault("slow", delay=0.03, jitter=0.03)).connect() as connection:
        sent = b"".join(struct.pack("!I", number) for number in range(40))
        for number in range(40):
            connection.sendall(sent[4 * number : 4 * number + 4])
            time.sleep(0.002)
        received = b""
        while len(received) < len(sent):
            received += connection.recv(4096)
    assert received == sent


def test_a_rate_is_that_of_a_link_which_its_connections_share(
    start: Callable[[Fault], Started],
) -> None:
    relay = start(Fault("slow", rate=2e6))
    with relay.connect() as one, relay.connect() as two, relay.connect() as small:
        _exchange(small)
        began = time.monotonic()
        both = [threading.Thread(target=_exchange, args=[each, 62_500]) for each in (one, two)]
        for thread in both:
            thread.start()
        waited = _exchange(small)
        for thread in both:
            thread.join()
        took = time.monotonic() - began
    # 125,000 bytes are a million bits: half a second.
    assert 0.45 < took < 1.2
    # A small request has its turn among the large ones.
    assert waited < took / 2


def test_lost_pieces_arrive_after_a_retransmission(start: Callable[[Fault], Started]) -> None:
    relay = start(Fault("slow", loss=0.25))

    def trip(_: int) -> float:
        with relay.connect() as connection:
            return _exchange(connection)

    trip(0)
    with ThreadPoolExecutor(32) as pool:
        trips = list(pool.map(trip, range(32)))
    late = [trip for trip in trips if trip > RETRANSMISSION * 0.9]
    assert late
    assert len(late) < len(trips)


def test_a_cut_refuses_connections(start: Callable[[Fault], Started]) -> None:
    relay = start(Fault("cut"))
    with pytest.raises(ConnectionRefusedError):
        relay.connect()


def test_a_relay_that_is_killed_breaks_open_connections(start: Callable[[Fault], Started]) -> None:
    relay = start(Fault("slow", delay=0.001))
    with relay.connect() as connection:
        _exchange(connection)
        relay.process.kill()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_a_hung_link_takes_connections_and_answers_nothing(
    start: Callable[[Fault], Started],
) -> None:
    with start(Fault("hang")).connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_a_lie_is_a_successful_answer_of_no_use(start: Callable[[Fault], Started]) -> None:
    with start(Fault("lie")).connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhel")
        time.sleep(0.05)
        connection.sendall(b"lo")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n" + LIE)


def test_an_end_passes_the_link_and_leaves_the_other_direction_open(
    start: Callable[[Fault], Started],
) -> None:
    with start(Fault("slow", delay=0.05)).connect() as connection:
        connection.sendall(b"last")
        connection.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: connection.recv(4096), b"")) == b"last"


def test_a_healed_relay_ends_with_its_last_connection_and_delays_nothing(
    start: Callable[[Fault], Started],
) -> None:
    relay = start(Fault("slow", delay=0.7))
    with relay.connect() as connection:
        assert _exchange(connection) > 0.7
        began = time.monotonic()
        connection.sendall(b"x")
        time.sleep(0.05)
        relay.process.send_signal(signal.SIGTERM)
        assert connection.recv(1) == b"x"
        assert _exchange(connection) + time.monotonic() - began < 0.5
        assert relay.process.poll() is None
    assert relay.process.wait(5) == 0
