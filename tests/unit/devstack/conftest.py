"""A stand-in for DevStack that implements only its contract with plugins."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CONTRACT = Path(__file__).with_name("contract.sh")
HOST = "192.168.56.11"
#: Types and URLs of some public endpoints in DevStack's catalog, after post-config.
CATALOG = f"""\
identity http://{HOST}:8888/identity
compute http://{HOST}:8888/compute/v2.1
image http://{HOST}:8888/image
object-store http://{HOST}:8080/v1/AUTH_$(project_id)s
"""
#: DevStack's catalog before post-config, and one URL that only looks like a service.
ENDPOINTS = f"""\
i1 http://{HOST}:8888/identity
c1 http://{HOST}/compute/v2.1
l1 http://{HOST}/compute/v2/$(project_id)s
g1 http://{HOST}/image
n1 http://{HOST}/networking
p1 http://{HOST}/placement
s1 http://{HOST}:8080/v1/AUTH_$(project_id)s
x1 http://{HOST}/computers
"""


@dataclass(frozen=True)
class Run:
    """The outcome of one or more phases."""

    status: int
    out: str
    error: str
    calls: tuple[str, ...]

    def called(self, command: str) -> list[str]:
        """The calls that begin with *command*, in order."""
        return [call for call in self.calls if f"{call} ".startswith(f"{command} ")]


@dataclass
class DevStack:
    """DevStack on a host: *root* holds its files, *local_conf* the user's settings."""

    root: Path
    plugin: Path = ROOT / "devstack"
    local_conf: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write the files as they are when the plugin's phases begin."""
        (self.root / "apache").mkdir()
        (self.root / "endpoints").write_text(ENDPOINTS)
        (self.root / "catalog").write_text(CATALOG)
        (self.root / "keystone.conf").write_text(
            f"[DEFAULT]\npublic_endpoint = http://{HOST}/identity\nmax_token_size = 16384\n"
        )
        (self.root / "glance-api.conf").write_text(
            f"[DEFAULT]\npublic_endpoint = http://{HOST}/image\ndebug = True\n"
        )

    def run(self, *phases: str, then: str = "true") -> Run:
        """Load the settings, run *phases* (``stack install``), and then *then*."""
        calls = self.root / "calls"
        calls.write_text("")
        lines = [
            f'source "{CONTRACT}"',
            f'source "{self.plugin}/settings"',
            *(f'source "{self.plugin}/plugin.sh" {phase}' for phase in phases),
            then,
        ]
        done = subprocess.run(
            ["bash", "-c", "\n".join(lines)],
            env={
                "PATH": f"{os.environ['PATH']}:/usr/sbin",
                "HOME": str(self.root),
                "ROOT": str(self.root),
                "CALLS": str(calls),
                "BIN": str(Path(sys.executable).parent),
                **self.local_conf,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Run(done.returncode, done.stdout, done.stderr, tuple(calls.read_text().splitlines()))

    def stack(self, *phases: str) -> Run:
        """Run *phases* of ``stack.sh`` (default: all), which have to succeed."""
        phases = phases or ("pre-install", "install", "post-config", "extra", "test-config")
        run = self.run(*(f"stack {phase}" for phase in phases))
        assert run.status == 0, run.error
        return run

    def setting(self, name: str) -> str:
        """The value of a variable after the settings are loaded."""
        run = self.run(then=f'echo "${name}"')
        assert run.status == 0, run.error
        return run.out.rstrip("\n")

    def options(self, name: str) -> Mapping[str, Mapping[str, str]]:
        """The options in each section of the configuration file *name*."""
        parser = configparser.RawConfigParser(strict=False, default_section="-")
        parser.read(self.root / name)
        return {section: dict(parser[section]) for section in parser.sections()}

    def description(self) -> dict[str, Any]:
        """The description of the proxy that the plugin has written."""
        read: dict[str, Any] = json.loads((self.root / "openstackoid/proxy.json").read_text())
        return read

    def haproxy_cfg(self) -> str:
        """The proxy's configuration."""
        return (self.root / "openstackoid/haproxy.cfg").read_text()


@pytest.fixture
def devstack() -> Iterator[DevStack]:
    """DevStack of InstanceOne, which knows InstanceTwo."""
    # Not tmp_path: it may be too long for the proxy's socket.
    with tempfile.TemporaryDirectory(prefix="devstack-", dir="/tmp") as root:
        made = DevStack(
            Path(root), local_conf={"OPENSTACKOID_PEERS": "InstanceTwo=192.168.56.12:8888"}
        )
        made.write()
        yield made
