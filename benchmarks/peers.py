"""Measure what many peers cost: rendering, checking, reloading, memory, checks and requests.

``python -m benchmarks.peers`` needs haproxy and wrk. For each number of peers, it renders a proxy,
has HAProxy check the files, runs it and reloads it under load. The peers' proxies are one HAProxy
that answers at once. A request's cost is CPU time of the proxy, as a ratio to the smallest number
of peers in the same round; each column is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.proxy import (
    AWAY,
    HOME,
    HOST,
    PATH,
    PREFIXES,
    TOKEN,
    Load,
    backend_at,
    free_port,
    load_with,
    run_haproxy,
    services_at,
)
from openstackoid.proxy.config import Peer, Proxy, reload, write
from openstackoid.scope import Scope

LOADS = {
    "no scope": (f"X-Auth-Token: {TOKEN}",),
    "canonical tag": (
        "X-Auth-Token: " + Scope({**dict.fromkeys(PREFIXES, HOME), "image": AWAY}).tag(TOKEN),
    ),
    "X-Scope": (f"X-Auth-Token: {TOKEN}", f'X-Scope: {{"image": "{AWAY}"}}'),
}
# Each address is the proxy of another instance.
HEALTH = """\
    acl check path /healthcheck
    http-request return status 200 content-type application/json lf-string \
'{{"instance": "%[dst,map_ip({names})]"}}' if check
"""


@dataclass(frozen=True)
class Result:
    """What one proxy cost.

    Seconds, the requests that failed during the reload, MiB, the share of one CPU that the checks
    take, and requests per CPU second.
    """

    render: float
    check: float
    reload: float
    failed: int
    memory: float
    idle: float
    rates: dict[str, float]


def main() -> None:
    """Measure, and print an org table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of one load in one round")
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 10, 100, 1000])
    options = parser.parse_args()
    rounds = [
        {number: _measure(number, options.seconds) for number in options.peers}
        for _ in range(options.rounds)
    ]
    _print(rounds, options.peers)


def _measure(number: int, seconds: int) -> Result:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers")))
        backend, ours = (f"{HOST}:{free_port()}" for _ in range(2))
        away, *others = _peers(number)
        proxy = Proxy(
            name=HOME,
            bind=ours,
            services=services_at(backend),
            peers=(*others, away),
            issuers=tuple(peer.name for peer in (away, *others)),
            directory=directory,
            threads=1,
        )
        began = time.monotonic()
        write(proxy)
        rendered = time.monotonic() - began
        configuration = directory / "haproxy.cfg"
        began = time.monotonic()
        subprocess.run(["haproxy", "-c", "-f", str(configuration)], check=True, capture_output=True)
        checked = time.monotonic() - began
        names = directory / "names.map"
        names.write_text(
            "".join(f"{one.address.split(':')[0]} {one.name}\n" for one in proxy.peers)
        )
        addresses = ",".join((backend, *(one.address for one in proxy.peers)))
        text = backend_at(addresses, HEALTH.format(names=names))
        (directory / "backend.cfg").write_text(text)
        run_haproxy(stack, directory / "backend.cfg", backend, cpu=1)
        master = run_haproxy(stack, configuration, ours, 0, "-W")
        worker = _worker(master)
        rates = {
            name: load_with(Load(name, ours, (worker.pid,), headers), seconds).rate_of_cpu
            for name, headers in LOADS.items()
        }
        memory = worker.memory_full_info().pss / 2**20
        idle = _idle(worker)
        reloaded, failed = _reload(master, proxy)
        return Result(rendered, checked, reloaded, failed, memory, idle, rates)


def _peers(number: int) -> list[Peer]:
    """AWAY and others, each at an address of its own, by which its proxy knows its name."""
    port = free_port()
    names = [AWAY, *(f"Site{n:04}" for n in range(1, number))]
    return [Peer(name, f"127.1.{n // 250}.{n % 250 + 1}:{port}") for n, name in enumerate(names)]


def _worker(master: int) -> psutil.Process:
    (worker,) = psutil.Process(master).children()
    return worker


def _idle(process: psutil.Process, seconds: float = 4.0) -> float:
    """The share of one CPU that a proxy without requests needs."""
    before = float(sum(process.cpu_times()[:2]))
    time.sleep(seconds)
    return (float(sum(process.cpu_times()[:2])) - before) / seconds


def _reload(master: int, proxy: Proxy) -> tuple[float, int]:
    """The seconds that a reload takes, and how many of the requests meanwhile failed."""
    done, failed = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            try:
                urllib.request.urlopen(f"http://{proxy.bind}{PATH}", timeout=5).close()
            except OSError as error:
                failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    began = time.monotonic()
    reload(master, proxy.socket)
    took = time.monotonic() - began
    time.sleep(0.5)
    done.set()
    thread.join()
    return took, len(failed)


def _print(rounds: list[dict[int, Result]], numbers: list[int]) -> None:
    def median(number: int, name: str) -> float:
        return float(statistics.median(getattr(one[number], name) for one in rounds))

    def ratio(number: int, load: str) -> float:
        return statistics.median(
            one[numbers[0]].rates[load] / one[number].rates[load] for one in rounds
        )

    print("| peers | render s | haproxy -c s | reload s | failed | MiB | CPU idle |", end="")
    print("".join(f" cost, {load} |" for load in LOADS))
    print("|-")
    for number in numbers:
        values = [median(number, name) for name in ("render", "check", "reload")]
        print(f"| {number} |", " | ".join(f"{value:.2f}" for value in values), end=" | ")
        failed = sum(one[number].failed for one in rounds)
        print(f"{failed} | {median(number, 'memory'):.0f} |", end="")
        print(f" {100 * median(number, 'idle'):.1f} % |", end="")
        print("".join(f" {ratio(number, load):.3f} |" for load in LOADS))


if __name__ == "__main__":
    main()
