"""Proxies that are made from endpoint lists, in place of the lab's own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.wheels.spec import PROXY_PORT
from tests.conftest import RunningLab

ONE, THREE = "InstanceOne", "InstanceThree"
LIST = ("openstack", "endpoint", "list", "-f", "json")
COLUMNS = ("-c", "Region", "-c", "Service Type", "-c", "Interface", "-c", "URL")
#: The ports of the lab's services.
SERVICES = {"identity": 5000, "image": 9292, "compute": 8774, "placement": 8778, "network": 9696}
#: How far the services of InstanceThree have moved.
MOVED = 10000


def openstackoid_proxy(lab: RunningLab, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(lab.config.root / ".venv/bin/openstackoid-proxy"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def running_haproxy(configuration: Path) -> Iterator[None]:
    command = ["haproxy", "-db", "-f", str(configuration)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        assert process.poll() is None
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def without_proxy(lab: RunningLab, name: str) -> Iterator[None]:
    """Take the proxy away that the lab gave to the instance *name*."""
    configuration = lab.config.state / name / "etc" / "supervisord.conf"
    control = [str(lab.config.root / ".venv/bin/supervisorctl"), "-c", str(configuration)]
    subprocess.run([*control, "stop", "haproxy"], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*control, "start", "haproxy"], check=True, capture_output=True)


@contextmanager
def proxies_of_lists(
    lab: RunningLab, directory: Path, backends: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[None]:
    """Run proxies of InstanceOne and InstanceThree that are made from their endpoint lists.

    The lists are concatenated, as they come from all clouds; each proxy is made from them.
    *backends* says where services answer that the lab itself does not have, for each instance.
    """
    lists = directory / "services.json"
    lists.write_text("".join(lab.ssh(name, *LIST, *COLUMNS).stdout for name in (ONE, THREE)))
    addresses = {name: str(lab.config.instance(name).address) for name in (ONE, THREE)}
    with ExitStack() as stack:
        for name, other, moved in ((ONE, THREE, 0), (THREE, ONE, MOVED)):
            options = ["check", "--instance", name, "--directory", str(directory / name)]
            options += ["--endpoints", str(lists), "--issuer", other]
            options += ["--peer", f"{other}=http://{addresses[other]}:{PROXY_PORT}"]
            urls = {kind: f"http://{addresses[name]}:{n + moved}" for kind, n in SERVICES.items()}
            for kind, url in {**urls, **(backends or {}).get(name, {})}.items():
                options += ["--backend", f"{kind}={url}"]
            made = openstackoid_proxy(lab, *options)
            assert made.returncode == 0, made.stderr
            stack.enter_context(without_proxy(lab, name))
            stack.enter_context(running_haproxy(directory / name / "haproxy.cfg"))
        _wait_for_peers(lab, directory / ONE, directory / THREE)
        yield


def _wait_for_peers(lab: RunningLab, *directories: Path) -> None:
    deadline = time.monotonic() + 20
    while "DOWN" in "".join(
        openstackoid_proxy(lab, "peers", str(directory)).stdout for directory in directories
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
