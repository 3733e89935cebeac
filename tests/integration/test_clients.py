"""Clients without support for scopes: the scope is in their auth URL only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Protocol

import openstack
import pytest
import yaml

from openstackoid.scope import Scope
from tests.conftest import RunningLab
from tests.integration.conftest import Shell


class Run(Protocol):
    """Runs ``openstack`` with these arguments."""

    def __call__(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]: ...


SCOPE = Scope({"image": "InstanceTwo"})


@pytest.fixture
def cloud(lab: RunningLab) -> dict[str, Any]:
    """InstanceOne in clouds.yaml, with a scope in its auth URL."""
    clouds = yaml.safe_load((lab.config.state / "clouds.yaml").read_text())
    settings: dict[str, Any] = clouds["clouds"]["InstanceOne"]
    plain = settings["auth"]["auth_url"]
    settings["auth"]["auth_url"] = plain.replace("/identity", f"/{SCOPE.url_segment()}/identity")
    return settings


@pytest.fixture
def run_stock(stock_openstack: Path, cloud: dict[str, Any], tmp_path: Path) -> Run:
    (tmp_path / "clouds.yaml").write_text(yaml.safe_dump({"clouds": {"scoped": cloud}}))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}

    def run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(stock_openstack), "--os-cloud", "scoped", *argv],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=check,
        )

    return run


def test_the_stock_command_has_no_scope_option(run_stock: Run) -> None:
    refused = run_stock("image", "list", "--scope", "image=InstanceTwo", check=False)
    assert refused.returncode == 2


def test_the_stock_command_sees_the_images_of_the_scope(run_stock: Run, two: Shell) -> None:
    listed = run_stock("image", "list", "-f", "value", "-c", "ID").stdout.split()
    assert listed == [two.image]


def test_the_stock_command_makes_a_server_from_an_image_elsewhere(
    run_stock: Run, one: Shell, two: Shell
) -> None:
    options = ["--image", two.image, "--flavor", "m1.tiny", "--network", "private", "--wait"]
    shown = ["-f", "value", "-c", "id", "-c", "status"]
    created = run_stock("server", "create", "test-stock", *options, *shown).stdout.split()
    assert "ACTIVE" in created
    [identifier] = [word for word in created if word != "ACTIVE"]
    rows = f"SELECT image_ref FROM nova.instances WHERE uuid = '{identifier}'"
    assert one.sql(rows) == [[two.image]]
    run_stock("server", "delete", identifier, "--wait")


def test_openstacksdk_makes_a_server_from_an_image_elsewhere(
    cloud: dict[str, Any], two: Shell
) -> None:
    connection = openstack.connection.Connection(
        auth_type=cloud["auth_type"],
        auth=cloud["auth"],
        region_name=cloud["region_name"],
        identity_api_version="3",
    )
    assert [image.id for image in connection.image.images()] == [two.image]
    server = connection.create_server(
        "test-sdk", image=two.image, flavor="m1.tiny", network="private", wait=True
    )
    assert server.status == "ACTIVE"
    assert server.image.id == two.image
    assert connection.delete_server(server.id, wait=True)
