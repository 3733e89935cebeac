"""Measure the cost of scopes: requests/s of the scope-aware proxy and of a plain HAProxy.

``python benchmarks/proxy.py`` needs haproxy and wrk. It starts a backend that answers at once, a
plain pass-through HAProxy and ours, all on loopback, with one thread each, the same global
settings and a log line for each request. Each round loads them in turn, so that a slow moment of
the machine affects all alike. All have the variables that the proxy is meant to have: without them,
an unlucky heap layout can cost a HAProxy 15 %. The ratios are medians of the rounds' ratios.
The last column divides by the CPU time of the proxy alone: other work on the machine lowers the
rate, but hardly affects this column.

HAProxy remembers the results of regular expressions for the last 10,000 texts. So some loads repeat
one token, and others take turns with more tokens than that: a cloud is somewhere in between.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import socket
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from openstackoid.proxy.config import ENVIRONMENT, Peer, Proxy, Service, write
from openstackoid.scope import Scope

HOST = "127.0.111.1"
PATH = "/image/v2/images"
PREFIXES = {
    "compute": "/compute",
    "identity": "/identity",
    "image": "/image",
    "network": "/networking",
    "placement": "/placement",
}
TOKEN = "gAAAAAB" + "x" * 176
HOME, AWAY = "InstanceOne", "InstanceTwo"
SCOPE = Scope({**dict.fromkeys(PREFIXES, HOME), "image": AWAY})
CONNECTIONS = 32
DIFFER = "; tokens differ"
PATIENCE = 10.0

COMMON = """
global
    log stdout format raw local0
    nbthread 1
    tune.bufsize 65536
    tune.maxrewrite 8192

defaults
    mode http
    timeout client 5m
    timeout server 5m
    timeout connect 1s
"""
BACKEND = """
frontend backend
    bind {backend}
{rules}    http-request return status 200 content-type application/json string '{body}'
"""
PLAIN = """
frontend plain
    bind {plain}
    log global
    option httplog
    default_backend service

backend service
    server service {backend}
"""


@dataclass(frozen=True)
class Load:
    """Something to measure: its name, its address or URL, the processes whose CPU time counts, the
    headers of each request, and whether the tokens differ.
    """

    name: str
    address: str
    processes: tuple[int, ...]
    headers: tuple[str, ...]
    tokens_differ: bool = False


@dataclass(frozen=True)
class Round:
    """The results of one run of wrk: requests/s, latencies, and requests per CPU second."""

    rate: float
    p50: str
    p99: str
    rate_of_cpu: float


def main() -> None:
    """Measure, and print an org table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4, help="of one load in one round")
    options = parser.parse_args()
    _print([_round(options.seconds) for _ in range(options.rounds)])


def _round(seconds: int) -> dict[str, Round]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        loads = _start(stack, directory)
        return {load.name: load_with(load, seconds) for load in loads}


def _start(stack: ExitStack, directory: Path) -> list[Load]:
    backend, plain, ours = (f"{HOST}:{free_port()}" for _ in range(3))
    proxy = Proxy(
        name=HOME,
        bind=ours,
        services=services_at(backend),
        peers=(Peer(AWAY, backend),),
        issuers=(AWAY,),
        directory=directory,
        threads=1,
    )
    write(proxy)
    texts = {
        "backend.cfg": backend_at(backend),
        "plain.cfg": COMMON + PLAIN.format(plain=plain, backend=backend),
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    run_haproxy(stack, directory / "backend.cfg", backend, cpu=1)
    plain_process = run_haproxy(stack, directory / "plain.cfg", plain, cpu=0)
    our_process = run_haproxy(stack, directory / "haproxy.cfg", ours, cpu=0)
    unscoped = f"X-Auth-Token: {TOKEN}"
    tagged = f"X-Auth-Token: {SCOPE.tag(TOKEN)}"
    header = f'X-Scope: {{"image": "{AWAY}"}}'
    loads = [
        Load("plain pass-through", plain, (plain_process,), (unscoped,)),
        Load("ours, unscoped", ours, (our_process,), (unscoped,)),
        Load("plain pass-through, tagged token", plain, (plain_process,), (tagged,)),
        Load("ours, tagged token", ours, (our_process,), (tagged,)),
    ]
    return [
        *loads,
        Load("ours, X-Scope header", ours, (our_process,), (unscoped, header)),
        *(replace(one, name=one.name + DIFFER, tokens_differ=True) for one in loads),
    ]


def services_at(backend: str) -> tuple[Service, ...]:
    """Services of all types, all of them at one address."""
    return tuple(
        Service(kind, prefix, f"http://{backend}", keep_alive=True)
        for kind, prefix in PREFIXES.items()
    )


def backend_at(address: str, rules: str = "") -> str:
    """The configuration of a HAProxy that answers at once, health checks of AWAY included.

    The lines in *rules*, if any, come first.
    """
    body = f'{{"instance": "{AWAY}"}}'.ljust(512)
    return COMMON + BACKEND.format(backend=address, body=body, rules=rules)


def run_haproxy(
    stack: ExitStack, configuration: Path, address: str, cpu: int, *options: str
) -> int:
    """Run a HAProxy on one CPU until the *stack* is closed, and return its PID."""
    process = subprocess.Popen(
        ["taskset", "-c", str(cpu), "haproxy", "-db", "-q", *options, "-f", str(configuration)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + PATIENCE
    while socket.socket().connect_ex((host, int(port))):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"haproxy does not answer with {configuration}")
        time.sleep(0.05)
    return process.pid


def load_with(load: Load, seconds: int) -> Round:
    """Send the requests of *load* for so many *seconds*."""
    words = [word for header in load.headers for word in ("-H", header)]
    if load.tokens_differ:
        words += ["-s", str(Path(__file__).with_name("tokens_differ.lua"))]
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    before = sum(map(_cpu_seconds, load.processes))
    url = load.address if "://" in load.address else f"http://{load.address}"
    done = subprocess.run(
        [*command, *words, f"{url}{PATH}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    used = sum(map(_cpu_seconds, load.processes)) - before
    if "Non-2xx" in done or "Socket errors" in done:
        raise SystemExit(f"{load.name}: not all requests were answered:\n{done}")
    requests = int(_find(r"(\d+) requests in", done))
    return Round(
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", done)),
        p50=_find(r"\n\s+50%\s+(\S+)", done),
        p99=_find(r"\n\s+99%\s+(\S+)", done),
        rate_of_cpu=requests / used,
    )


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if not match:
        raise SystemExit(f"wrk says nothing like {pattern}:\n{text}")
    return match[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _print(rounds: list[dict[str, Round]]) -> None:
    plain = next(iter(rounds[0]))
    print(f"#+caption: {_machine()}; {len(rounds)} rounds")
    print("| load | requests/s | ratio | p50 | p99 | requests per CPU second | ratio |")
    print("|-")
    for name in rounds[0]:
        reference = f"{plain}, tagged token" if "tagged" in name or "Scope" in name else plain
        reference += DIFFER * name.endswith(DIFFER)
        seen = [a_round[name] for a_round in rounds]
        middle = sorted(seen, key=lambda result: result.rate)[len(seen) // 2]
        ratio = statistics.median(r[name].rate / r[reference].rate for r in rounds)
        ratio_of_cpu = statistics.median(
            r[name].rate_of_cpu / r[reference].rate_of_cpu for r in rounds
        )
        of_cpu = statistics.median(result.rate_of_cpu for result in seen)
        print(
            f"| {name} | {middle.rate:.0f} | {ratio:.3f} | {middle.p50} | {middle.p99} "
            f"| {of_cpu:.0f} | {ratio_of_cpu:.3f} |"
        )


def _machine() -> str:
    cpu = _find(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    version = subprocess.run(["haproxy", "-v"], check=True, capture_output=True, text=True).stdout
    haproxy = _find(r"version (\d+\.\d+\.\d+)", version)
    return f"{datetime.date.today()}, {os.cpu_count()} x {cpu}, HAProxy {haproxy}"


if __name__ == "__main__":
    main()
