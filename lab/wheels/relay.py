"""A TCP relay that stands in a link from a proxy to its peer, and does what a fault says.

``python -m lab.wheels.relay JSON`` takes the description of a :class:`Relay`, whose socket it
inherits. SIGTERM ends the fault at once, and the relay when its last connection has ended. This
module uses the standard library only: each broken link has such a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from lab.faults import Fault

#: Bytes that the relay takes at once at the most: what a loss hits.
PIECE = 16384
#: Seconds after which TCP sends again what was lost, at first: Linux's shortest (TCP_RTO_MIN).
#: Each time that it is lost again, TCP waits twice as long.
RETRANSMISSION = 0.2
#: Seconds of a link's rate that one connection takes before the next one has its turn.
TURN = 0.02
#: How many pieces of a connection are under way at once.
_UNDER_WAY = 256
_CHANCE = random.SystemRandom()
#: What a liar answers to each HTTP request: well-formed, successful, and of no use.
LIE = b"This is not the answer that you are looking for.\n"
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(LIE), LIE)
)


@dataclass(frozen=True)
class Relay:
    """The relay of the link to *peer*.

    It takes connections at *descriptor*, a bound socket with the port *port*, and makes its own
    from the address *source* to *target*, ``HOST:PORT``. The socket listens, unless the fault is a
    cut: then the kernel refuses each connection. With *tls*, the connections are TLS.
    """

    peer: str
    fault: Fault
    source: str
    target: str
    tls: bool
    descriptor: int
    port: int

    def to_json(self) -> str:
        """The description as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Relay:
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "fault": Fault(**fields["fault"])})

    async def run(self) -> None:
        """Do what the fault says, until SIGTERM."""
        healed = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, healed.set)
        listener = socket.socket(fileno=self.descriptor)
        if self.fault.kind in ("cut", "hang"):
            # The kernel refuses connections, or takes them and nobody else ever does.
            await healed.wait()
            return
        connections: set[asyncio.Task[None]] = set()
        serve = self._lie if self.fault.kind == "lie" else _Slow(self, healed).serve

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(_closing(serve, reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(begin, sock=listener)
        await healed.wait()
        server.close()
        if connections:
            await asyncio.wait(connections)

    async def _lie(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a request wrongly; with TLS, answer what is no TLS."""
        if self.tls:
            await reader.read(PIECE)
            writer.write(os.urandom(PIECE))
            return
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_ANSWER)
        writer.write_eof()
        # A close would take the answer away from who is still sending a body.
        async with asyncio.timeout(2):
            while await reader.read(PIECE):
                pass


class _Lane:
    """One direction of a link with a rate: its connections take turns."""

    def __init__(self) -> None:
        #: Who waits for it has the next turn.
        self.lock = asyncio.Lock()
        #: Until when it is occupied, by the loop's clock.
        self.busy = 0.0


Pieces = asyncio.Queue[tuple[float, bytes]]


class _Slow:
    """The connections of a link that is slow, until it is *healed*."""

    def __init__(self, relay: Relay, healed: asyncio.Event) -> None:
        self._relay = relay
        self._fault = relay.fault
        self._healed = healed
        of_turn = int(relay.fault.rate / 8 * TURN)
        self._piece = min(PIECE, max(512, of_turn)) if of_turn else PIECE
        self._there, self._back = _Lane(), _Lane()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes from either side, until both have ended or one breaks."""
        host, _, port = self._relay.target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(
            host, int(port), local_addr=(self._relay.source, 0)
        )
        there, back = Pieces(_UNDER_WAY), Pieces(_UNDER_WAY)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take(reader, self._there, there, delays=True))
                group.create_task(self._deliver(there, far_writer))
                group.create_task(self._take(far_reader, self._back, back, delays=False))
                group.create_task(self._deliver(back, writer))
        except* OSError:
            # What breaks on one side breaks on the other.
            reset(writer)
            reset(far_writer)
        finally:
            far_writer.close()

    async def _take(
        self, reader: asyncio.StreamReader, lane: _Lane, pieces: Pieces, *, delays: bool
    ) -> None:
        """Send what *reader* has on its way; with *delays*, this direction has the delay."""
        piece = b"some"
        while piece:
            piece = await reader.read(self._piece)
            await self._occupy(lane, len(piece))
            await pieces.put((self._arrival(delays=delays), piece))

    async def _deliver(self, pieces: Pieces, writer: asyncio.StreamWriter) -> None:
        """Hand over to *writer* what is on its way, when it arrives."""
        moment = 0.0
        while True:
            arrival, piece = await pieces.get()
            # TCP keeps the order: what is late holds up what follows.
            moment = max(moment, arrival)
            await self._until(moment)
            if not piece:
                writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()

    async def _occupy(self, lane: _Lane, size: int) -> None:
        """Occupy *lane* for as long as its rate takes for *size* bytes."""
        if not self._fault.rate or self._healed.is_set():
            return
        async with lane.lock:
            # A timer that was late must not cost the link anything.
            begin = max(lane.busy, asyncio.get_running_loop().time() - TURN)
            lane.busy = begin + size * 8 / self._fault.rate
            await self._until(lane.busy)

    def _arrival(self, *, delays: bool) -> float:
        """When a piece that is sent now arrives: later if it is lost, maybe more than once."""
        fault, late, wait = self._fault, 0.0, RETRANSMISSION
        if delays:
            late = max(0, fault.delay + _CHANCE.uniform(-1, 1) * fault.jitter)
        while _CHANCE.random() < fault.loss:
            late, wait = late + wait, wait * 2
        return asyncio.get_running_loop().time() + late

    async def _until(self, moment: float) -> None:
        """Wait until *moment* of the loop's clock, or until the link is healed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(moment):
                await self._healed.wait()


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection off, so that the other side gets an error, not an end."""
    linger = struct.pack("ii", 1, 0)
    with contextlib.suppress(OSError):  # it is broken already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _closing(
    serve: Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Have *serve* use a connection, and close it; what breaks on the other side breaks here."""
    try:
        await serve(reader, writer)
    except OSError:
        reset(writer)
    except (EOFError, asyncio.LimitOverrunError):
        # No request, or none that is HTTP.
        pass
    finally:
        writer.close()


def main() -> None:
    """Be the relay that the one argument describes."""
    asyncio.run(Relay.from_json(sys.argv[1]).run())


if __name__ == "__main__":
    main()
