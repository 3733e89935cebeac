"""Measure the cost of a hanging peer for local requests, on the running lab of two instances.

Run ``./setup-env.py up --no-attach``, then ``python benchmarks/hung_peer.py``. It measures local
``image list`` requests of InstanceOne, first undisturbed, then with InstanceTwo's proxy stopped
(SIGSTOP: it accepts connections and answers nothing). Meanwhile, 50 requests a second arrive with
tokens that claim InstanceTwo as their issuer. The measurement starts before the proxy is stopped,
so it includes the seconds until the hang is detected. Aim: p99 at most five times the undisturbed
one, no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from openstackoid.scope import Scope

ROOT = Path(__file__).resolve().parent.parent
RATE = 50
TYPES = ("compute", "image", "network", "placement")
TAG = Scope({**dict.fromkeys(TYPES, "InstanceOne"), "identity": "InstanceTwo"})


def main() -> None:
    """Measure, and print an org table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="of each of the two measurements")
    seconds = parser.parse_args().seconds
    token = _setup_env(
        "ssh", "InstanceOne", "--", "openstack", "token", "issue", "-f", "value", "-c", "id"
    )
    status = json.loads(_setup_env("status", "--json"))
    addresses = {one["name"]: one["address"] for one in status["instances"]}
    url = f"http://{addresses['InstanceOne']}:8888/image/v2/images"
    print("| local requests | number | p50 (ms) | p99 (ms) | failed |")
    print("|-")
    _print("undisturbed", *_measure(url, token, seconds))
    with _stopped(addresses["InstanceTwo"]), _attacked(url):
        _print(f"a peer hangs, {RATE} foreign tokens/s", *_measure(url, token, seconds))


def _setup_env(*arguments: str) -> str:
    command = [str(ROOT / "setup-env.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _get(url: str, token: str) -> int:
    request = urllib.request.Request(url, headers={"X-Auth-Token": token})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _measure(url: str, token: str, seconds: float) -> tuple[list[float], int]:
    """The milliseconds of sequential requests, and how many failed."""
    times, failed = [], 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.monotonic()
        failed += _get(url, token) != 200  # noqa: PLR2004 - HTTP's OK
        times.append((time.monotonic() - began) * 1000)
        time.sleep(0.01)
    return times, failed


@contextlib.contextmanager
def _stopped(address: str) -> Iterator[None]:
    """Stop the HAProxy that listens at *address* after one second, and resume it at the end."""
    found = {
        process.pid
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "haproxy"
        and any(
            f"{address}:8888" == f"{c.laddr.ip}:{c.laddr.port}" for c in process.net_connections()
        )
    }

    def stop() -> None:
        for pid in found:
            os.kill(pid, signal.SIGSTOP)

    timer = threading.Timer(1, stop)
    timer.start()
    try:
        yield
    finally:
        timer.join()
        for pid in found:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _attacked(url: str) -> Iterator[None]:
    """Send requests with invalid foreign tokens, each with a different one."""
    done = threading.Event()

    def attack() -> None:
        number = 0
        while not done.wait(1 / RATE):
            number += 1
            pool.submit(_get, url, TAG.tag(f"garbage{number}"))

    with ThreadPoolExecutor(200) as pool:
        attacker = threading.Thread(target=attack)
        attacker.start()
        try:
            yield
        finally:
            done.set()
            attacker.join()


def _print(what: str, times: list[float], failed: int) -> None:
    p99 = statistics.quantiles(times, n=100)[98]
    print(f"| {what} | {len(times)} | {statistics.median(times):.1f} | {p99:.1f} | {failed} |")


if __name__ == "__main__":
    main()
