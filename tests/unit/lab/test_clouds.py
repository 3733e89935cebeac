"""Whose passwords are in ``clouds.yaml``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab import stacks
from lab.config import Lab, load
from lab.passwords import passwords
from lab.providers.base import Host
from lab.ssh import Remote


def reach_nobody(host: Host) -> Remote:
    raise AssertionError(f"{host.name} was called")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="oid-") as name:
        (Path(name) / "lab.yaml").write_text(
            "provider: local\n"
            "instances: [{name: A, address: 127.0.1.1}, {name: B, address: 127.0.2.1}]\n"
        )
        yield load(Path(name))


@pytest.mark.parametrize("name", ["wheels", "devstack"])
def test_an_instance_knows_no_administrator_but_its_own(lab: Lab, name: str) -> None:
    stack = stacks.stack_class(name)(lab, reach_nobody)
    secrets = {one: passwords(lab, one, stack.accounts) for one in lab.names}
    home = Path("/home")
    hosts = [Host(one, "", home, home, home, home, "", "") for one in lab.names]
    for one, text in stack.homes(hosts).items():
        clouds = yaml.safe_load(text)["clouds"]
        [other] = set(clouds) - {one}
        assert clouds[one]["auth"]["password"] == secrets[one]["admin"]
        assert clouds[other]["auth"]["password"] == secrets[other][stack.member]
        known = {account for account, secret in secrets[other].items() if secret in text}
        assert known == {stack.member}


def test_the_owner_of_the_lab_is_administrator_everywhere(lab: Lab) -> None:
    stack = stacks.stack(lab, reach_nobody)
    for name, cloud in stack.clouds()["clouds"].items():
        assert cloud["auth"]["username"] == cloud["auth"]["project_name"] == "admin"
        assert cloud["auth"]["password"] == passwords(lab, name, stack.accounts)["admin"]
