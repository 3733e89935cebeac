"""The links from an instance's proxy to its peers: break them on purpose, heal and measure them.

A link without a fault costs nothing: the proxies talk directly. One with a fault leads through a
process of its own (:mod:`lab.wheels.relay`), which the running HAProxy is told to use for the peer.
What is true is what HAProxy does, so nothing is written down: a reload or a restart heals, unless
``Links.kept`` is around it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil

from lab import processes
from lab.faults import Fault
from lab.wheels import relay
from lab.wheels.configure import proxy
from lab.wheels.layout import Layout
from lab.wheels.relay import Relay
from openstackoid.proxy.config import ProxyError, peer_addresses, peer_states, redirect_peer

#: Seconds for an answer through a link.
PATIENCE = 3
#: Connections that wait in a relay's socket.
_BACKLOG = 1024
_MODULE = ["-m", relay.__name__]
_ENDED = "its relay has ended: --heal"


@dataclass(frozen=True)
class Link:
    """The link to *peer* at this moment.

    *fault* is empty if it has none or nobody knows; *seconds* is the time of a request and its
    answer, None with an *error*; *state* is what the proxy's health check says, as in ``status``.
    """

    peer: str
    fault: str
    state: str
    seconds: float | None
    error: str


class Links:
    """The links of the instance at *layout*."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._spec = layout.spec
        self._state = layout.directory.parent
        self._socket = proxy(layout).socket

    def set(self, peer: str, fault: Fault) -> None:
        """Give the link to *peer* this *fault*, in place of another one.

        Requests under way go on without it, but a cut ends them.

        :raises ProxyError: when the proxy does not run.
        """
        former = self._processes([peer])
        with socket.socket() as listener:
            listener.bind((self._spec.address, 0))
            if fault.kind != "cut":
                listener.listen(_BACKLOG)
            one = Relay(
                peer,
                fault,
                source=self._spec.address,
                target=self._spec.peers[peer],
                tls=bool(self._spec.tls),
                descriptor=listener.fileno(),
                port=listener.getsockname()[1],
            )
            command = [sys.executable, *_MODULE, one.to_json()]
            with (self._layout.log / f"relay-{peer}.log").open("ab") as log:
                started = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                    # On a machine, sudo drops the marks.
                    env={**os.environ, **processes.marks(self._state, self._spec.name)},
                    start_new_session=True,
                )
        breaks = fault.kind == "cut"
        try:
            address = f"{self._spec.address}:{one.port}"
            redirect_peer(self._socket, peer, address, breaks=breaks)
        except ProxyError:
            started.kill()
            raise
        if breaks:
            processes.stop(former, grace=0)
        else:
            _finish(former)

    def heal(self, peers: Collection[str] = ()) -> None:
        """Take the faults of the links to *peers* away; without any, those of all links.

        Requests under way go on without the fault.

        :raises ProxyError: when the proxy does not run.
        """
        for peer, address in peer_addresses(self._socket).items():
            direct = self._spec.peers.get(peer, address)
            if peer in (peers or [peer]) and address != direct:
                redirect_peer(self._socket, peer, direct)
        _finish(self._processes(peers))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever reloads the proxy here, each link keeps its fault.

        :raises ProxyError: when the proxy does not run.
        """
        before = peer_addresses(self._socket)
        yield
        for peer, address in before.items():
            if address != self._spec.peers.get(peer, address):
                redirect_peer(self._socket, peer, address)

    def report(self) -> list[Link]:
        """Every link, with the time of a request through it."""
        try:
            states, addresses = peer_states(self._socket), peer_addresses(self._socket)
        except ProxyError:
            why = f"the proxy of {self._spec.name} does not answer"
            return [Link(peer, "", "", None, why) for peer in self._spec.peers]
        faults = {
            f"{self._spec.address}:{one.port}": str(one.fault)
            for one in map(_relay, self._processes())
            if one
        }
        direct = dict.fromkeys(self._spec.peers.values(), "")

        def link(peer: str) -> Link:
            address = addresses[peer]
            fault = {**faults, **direct}.get(address, _ENDED)
            try:
                seconds, error = self._round_trip(peer, address), ""
            except (OSError, http.client.HTTPException, ValueError) as failure:
                seconds, error = None, _reason(failure)
            return Link(peer, fault, states[peer], seconds, error)

        peers = [peer for peer in self._spec.peers if peer in addresses]
        with ThreadPoolExecutor(len(peers) or 1) as pool:
            return list(pool.map(link, peers))

    def _round_trip(self, peer: str, address: str) -> float:
        """The seconds of a health check of *peer* at *address*, on a connection that is open.

        :raises OSError, HTTPException, ValueError: when the peer does not answer as it should.
        """
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(
            host, int(port), timeout=PATIENCE, source_address=(self._spec.address, 0)
        )
        deadline = time.monotonic() + PATIENCE
        connection.connect()
        if self._spec.tls:
            connection.sock = self._tls().wrap_socket(connection.sock, server_hostname=peer)
        try:
            # The first one waits for what the peer does once per connection, too.
            for _ in range(2):
                began = time.monotonic()
                connection.sock.settimeout(max(0.01, deadline - began))
                connection.request("GET", "/healthcheck")
                answer = connection.getresponse().read()
                if json.loads(answer) != {"instance": peer}:
                    raise ValueError("not what its health check answers")
                took = time.monotonic() - began
            return took
        finally:
            connection.close()

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._layout.etc / "ca.pem"))
        context.load_cert_chain(self._layout.etc / "certificate.pem")
        return context

    def _processes(self, peers: Collection[str] = ()) -> list[psutil.Process]:
        """The relays of the links to *peers*, or of all, including those that end."""
        return [
            process
            for process in processes.marked(self._state, self._spec.name)
            if (one := _relay(process)) and one.peer in (peers or [one.peer])
        ]


def _relay(process: psutil.Process) -> Relay | None:
    """The relay that *process* is, if it is one."""
    with contextlib.suppress(psutil.Error):
        command = process.cmdline()
        if command[1:-1] == _MODULE:
            return Relay.from_json(command[-1])
    return None


def _finish(relays: Iterable[psutil.Process]) -> None:
    """End *relays* that no new connection reaches: each has those under way to finish."""
    ending = list(relays)
    for process in ending:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    processes.wait(ending, PATIENCE)


def _reason(error: Exception) -> str:
    """Why there is no answer, in a few words."""
    match error:
        case TimeoutError():
            return f"no answer within {PATIENCE} s"
        case ConnectionRefusedError():
            return "refused"
        case ssl.SSLError():
            return "no TLS"
        case ValueError() | http.client.BadStatusLine():
            return "a wrong answer"
        case _:
            return "broken off"
