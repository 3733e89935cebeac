"""Clients without support for scopes: the scope is in their auth URL only."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Protocol

import openstack
import pytest
import yaml

from lab import apt
from openstackoid.scope import Scope
from tests.conftest import ROOT, RunningLab
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


@pytest.fixture
def libcloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with apache-libcloud, which has its own code for logins."""
    venv = tmp_path_factory.mktemp("libcloud") / "venv"
    uv = [str(Path(sys.prefix) / "bin" / "uv")]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    install = ["pip", "install", "--quiet", "--python", str(venv / "bin" / "python")]
    constraints = ["--constraints", str(ROOT / "constraints.txt")]
    subprocess.run([*uv, *install, *constraints, "apache-libcloud"], check=True)
    return venv / "bin" / "python"


LIBCLOUD = """
import json, sys
from libcloud.common.openstack_identity import OpenStackAuthenticationCache
from libcloud.compute.providers import get_driver
from libcloud.compute.types import Provider

class Cache(OpenStackAuthenticationCache):
    contexts = {}
    def get(self, key):
        return self.contexts.get(str(key))
    def put(self, key, context):
        self.contexts[str(key)] = context
    def clear(self, key):
        self.contexts.pop(str(key), None)

settings, seen = json.loads(sys.argv[1]), []
for _ in range(2):
    driver = get_driver(Provider.OPENSTACK)(
        settings["username"], settings["password"], ex_force_auth_url=settings["url"],
        ex_force_auth_version="3.x_password", ex_tenant_name=settings["project"],
        ex_domain_name="Default", ex_force_service_region=settings["region"],
        ex_auth_cache=Cache(),
    )
    seen.append([image.id for image in driver.list_images()])
print(json.dumps(seen))
"""


@pytest.mark.parametrize("way", ["URL", "region"])
def test_libcloud_sees_the_images_of_the_scope_also_with_a_cached_login(
    libcloud: Path, cloud: dict[str, Any], two: Shell, way: str
) -> None:
    url = cloud["auth"]["auth_url"]
    settings = {
        "username": cloud["auth"]["username"],
        "password": cloud["auth"]["password"],
        "project": cloud["auth"]["project_name"],
        "url": (url if way == "URL" else url.replace(f"/{SCOPE.url_segment()}", ""))[: -len("/v3")],
        "region": "InstanceOne" if way == "URL" else "mixed",
    }
    done = subprocess.run(
        [str(libcloud), "-c", LIBCLOUD, json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[two.image], [two.image]]


@pytest.mark.parametrize("way", ["URL", "region"])
def test_prometheus_discovers_the_hypervisors_of_the_scope(
    lab: RunningLab, cloud: dict[str, Any], tmp_path: Path, way: str
) -> None:
    """Written in Go, with gophercloud, as Terraform and Packer are."""
    if apt.missing(["prometheus"]) and os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip(f"a package is missing: {apt.install_line(['prometheus'])}")
    apt.ensure(["prometheus"], print)
    plain = cloud["auth"]["auth_url"].replace(f"/{SCOPE.url_segment()}", "")
    there = Scope({"compute": "InstanceTwo"}).url_segment()
    discovery = {
        "role": "hypervisor",
        "identity_endpoint": plain.replace("/identity", f"/{there}/identity")
        if way == "URL"
        else plain,
        "region": "InstanceOne" if way == "URL" else "InstanceTwo",
        "username": cloud["auth"]["username"],
        "password": cloud["auth"]["password"],
        "domain_name": "Default",
        "project_name": cloud["auth"]["project_name"],
    }
    job = {"job_name": "lab", "openstack_sd_configs": [discovery]}
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [job]}))
    config.chmod(0o600)
    address = f"{lab.config.instance('InstanceOne').address}:{free_port()}"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL
    )
    try:
        assert discovered(address) == {"InstanceTwo"}
    finally:
        process.terminate()
        process.wait(20)


def discovered(address: str) -> set[str]:
    """The hypervisors that the Prometheus at *address* has found."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            url = f"http://{address}/api/v1/targets"
            with urllib.request.urlopen(url, timeout=5) as answer:
                targets = json.load(answer)["data"]["activeTargets"]
            if targets:
                label = "__meta_openstack_hypervisor_hostname"
                return {target["discoveredLabels"][label] for target in targets}
        time.sleep(0.3)
    raise AssertionError("Prometheus has found nothing")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
