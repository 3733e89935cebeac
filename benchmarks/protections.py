"""Measure what protections cost: sealed tokens, TLS between proxies, and clients by HTTPS.

``python -m benchmarks.protections`` needs haproxy and wrk. Two scope-aware proxies with one thread
each share a CPU; clients ask the first one for the images of the second one, over connections that
stay open. Each round loads all variants in turn. The ratios are medians of the rounds' ratios to
the variant without protection; those of CPU are requests per CPU second of both proxies.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trustme

from benchmarks.proxy import (
    AWAY,
    HOME,
    SCOPE,
    TOKEN,
    Load,
    backend_at,
    free_port,
    load_with,
    run_haproxy,
    services_at,
)
from openstackoid.proxy.config import Https, Peer, Proxy, Tls, peer_states, write

HOSTS = {HOME: "127.0.111.1", AWAY: "127.0.112.1"}


@dataclass(frozen=True)
class Variant:
    """A way to protect the request."""

    name: str
    sealed: bool = False
    tls: bool = False
    https: bool = False


VARIANTS = (
    Variant("no protection"),
    Variant("sealed token", sealed=True),
    Variant("TLS between the proxies", tls=True),
    Variant("TLS and sealed token", sealed=True, tls=True),
    Variant("HTTPS client", https=True),
    Variant("HTTPS client, TLS and sealed token", sealed=True, tls=True, https=True),
)


def main() -> None:
    """Measure, and print an org table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4, help="of one variant in one round")
    options = parser.parse_args()
    rounds = [
        {one.name: _measure(one, options.seconds) for one in VARIANTS}
        for _ in range(options.rounds)
    ]
    print("| protection | requests/s | ratio | requests per CPU second | ratio |")
    print("|-")
    for one in VARIANTS:
        columns = []
        for of_cpu in (0, 1):
            seen = [a_round[one.name][of_cpu] for a_round in rounds]
            plain = [a_round[VARIANTS[0].name][of_cpu] for a_round in rounds]
            ratio = statistics.median(a / b for a, b in zip(seen, plain, strict=True))
            columns.append(f"{statistics.median(seen):.0f} | {ratio:.3f}")
        print(f"| {one.name} | {' | '.join(columns)} |")


def _measure(variant: Variant, seconds: int) -> tuple[float, float]:
    """Requests per second, and per CPU second of both proxies."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="protect")))
        authority = trustme.CA()
        (base / "ca.pem").write_bytes(authority.cert_pem.bytes())
        backend = f"{HOSTS[HOME]}:{free_port()}"
        (base / "backend.cfg").write_text(backend_at(backend))
        run_haproxy(stack, base / "backend.cfg", backend, cpu=1)
        plain, tls, https = ({name: f"{host}:{free_port()}" for name, host in HOSTS.items()}
                             for _ in range(3))  # fmt: skip
        processes, proxies = {}, {}
        for name, other in ((AWAY, HOME), (HOME, AWAY)):
            own = base / f"{name}.pem"
            leaf = authority.issue_cert(name, HOSTS[name], common_name=name)
            own.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
            address = (tls if variant.tls else plain)[other]
            proxies[name] = Proxy(
                name,
                plain[name],
                services_at(backend),
                (Peer(other, address, sealed=variant.sealed, tls=variant.tls),),
                (other,),
                directory=base / name,
                threads=1,
                tls=Tls(own, base / "ca.pem", tls[name]) if variant.tls else None,
                https=Https(own, https[name]) if variant.https else None,
            )
            write(proxies[name])
            configuration = base / name / "haproxy.cfg"
            processes[name] = run_haproxy(stack, configuration, plain[name], cpu=0)
        home = proxies[HOME].socket
        while not home.exists() or peer_states(home)[AWAY] != "UP":
            time.sleep(0.05)
        address = f"https://{https[HOME]}" if variant.https else plain[HOME]
        headers = (f"X-Auth-Token: {SCOPE.tag(TOKEN)}",)
        load = Load(variant.name, address, tuple(processes.values()), headers)
        result = load_with(load, seconds)
        return result.rate, result.rate_of_cpu


if __name__ == "__main__":
    main()
