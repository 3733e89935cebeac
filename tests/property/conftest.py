"""Three instances and their proxies, for all routing tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from openstackoid.proxy.config import Peer, Proxy, Service

from .harness import Client, EchoServices, RunningProxy, free_port
from .model import Instance, World

PREFIXES = {
    "compute": "/compute",
    "identity": "/identity",
    "image": "/image",
    "network": "/networking",
    "placement": "/placement",
}
ADDRESSES = {"InstanceOne": "127.0.101.1", "InstanceTwo": "127.0.102.1", "Three": "127.0.103.1"}
AWAY = "Away"
#: The issuers that each instance accepts besides itself; nobody trusts Three.
ISSUERS = {
    "InstanceOne": ("InstanceTwo", AWAY),
    "InstanceTwo": ("InstanceOne",),
    "Three": ("InstanceOne", "InstanceTwo"),
}


@dataclass(frozen=True, repr=False)
class Federation:
    """The running proxies, their clients, and the model of their behaviour."""

    proxies: dict[str, RunningProxy]
    clients: dict[str, Client]
    world: World

    def __repr__(self) -> str:
        return "the federation"


@pytest.fixture(scope="session")
def federation() -> Iterator[Federation]:
    """InstanceOne and InstanceTwo, which trust each other; Three, which they know but do not trust;
    and Away, which they know, but which does not run.
    """
    with running() as federation:
        yield federation


@contextmanager
def running(port_style: str = "") -> Iterator[Federation]:
    """Run these instances; the services of the instance *port_style* have ports of their own."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxies")))
        echo = stack.enter_context(EchoServices())
        binds = {name: f"{host}:{free_port(host)}" for name, host in ADDRESSES.items()}
        away = f"127.0.104.1:{free_port('127.0.104.1')}"
        proxies = {}
        for name, host in ADDRESSES.items():
            peers = [Peer(other, bind) for other, bind in binds.items() if other != name]
            proxies[name] = Proxy(
                name=name,
                bind=binds[name],
                services=tuple(
                    Service(
                        kind,
                        prefix,
                        echo.add(f"{name} {kind}", host),
                        keep_alive=True,
                        bare=name == port_style,
                        frontends=(f"{host}:{free_port(host)}",) if name == port_style else (),
                    )
                    for kind, prefix in PREFIXES.items()
                ),
                peers=(*peers, Peer(AWAY, away)),
                issuers=ISSUERS[name],
                directory=base / name,
            )
        started = {
            name: stack.enter_context(RunningProxy(proxy)) for name, proxy in proxies.items()
        }
        for one in started.values():
            for peer in one.proxy.peers:
                one.wait_for_peer(peer.name, "DOWN" if peer.name == AWAY else "UP")
        clients = {name: Client(bind) for name, bind in binds.items()}
        for client in clients.values():
            stack.callback(client.close)
        world = World(
            {
                name: Instance(
                    name, PREFIXES, tuple(peer.name for peer in proxy.peers), ISSUERS[name]
                )
                for name, proxy in proxies.items()
            },
            away=(AWAY,),
        )
        yield Federation(started, clients, world)
