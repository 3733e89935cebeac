"""Clients that choose by region: each other instance and each named scope is one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import openstack
import pytest
import yaml

from lab.stacks.wheels import _spec
from lab.wheels.spec import PROXY_PORT
from openstackoid.scope import Scope
from tests.conftest import RunningLab
from tests.integration.conftest import Shell

HOST = "Hypervisor Hostname"


class Stock(Protocol):
    """The output of the stock ``openstack`` command with these arguments."""

    def __call__(self, line: str) -> str: ...


@pytest.fixture(scope="module", autouse=True)
def _regions(lab: RunningLab) -> None:
    config = lab.config
    if config.stack != "wheels" or not config.regions or "mixed" not in config.scopes:
        pytest.skip("the lab has no regions besides its instances' own")


@pytest.fixture
def cloud(lab: RunningLab) -> dict[str, Any]:
    """InstanceOne in clouds.yaml."""
    clouds = yaml.safe_load((lab.config.state / "clouds.yaml").read_text())["clouds"]
    settings: dict[str, Any] = clouds["InstanceOne"]
    return settings


@pytest.fixture
def stock(stock_openstack: Path, cloud: dict[str, Any], tmp_path: Path) -> Stock:
    without = {name: value for name, value in cloud.items() if name[:6] != "region"}
    clouds = {"InstanceOne": cloud, "without-region": without}
    (tmp_path / "clouds.yaml").write_text(yaml.safe_dump({"clouds": clouds}))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}

    def run(line: str) -> str:
        done = subprocess.run(
            [str(stock_openstack), *line.split()],
            cwd=tmp_path,
            env={**environment, "OS_CLOUD": "InstanceOne"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def two_server(two: Shell) -> Iterator[str]:
    """The ID of a server of the administrator of InstanceTwo."""
    options = "--image cirros --flavor m1.tiny --network private --wait -f value -c id"
    identifier = two.openstack(f"server create test-region-two {options}")
    yield identifier
    two.openstack(f"server delete {identifier} --wait")


def catalog(cloud: dict[str, Any]) -> tuple[str, dict[str, list[dict[str, str]]]]:
    """A new token, and its catalog: the endpoints of each service type, in order."""
    auth = cloud["auth"]
    user = {"name": auth["username"], "domain": {"name": "Default"}, "password": auth["password"]}
    project = {"name": auth["project_name"], "domain": {"name": "Default"}}
    body = {
        "auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": project},
        }
    }
    request = urllib.request.Request(
        f"{auth['auth_url']}/auth/tokens",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        token = answer.headers["X-Subject-Token"]
        entries = json.load(answer)["token"]["catalog"]
    return token, {entry["type"]: entry["endpoints"] for entry in entries}


def by_region(endpoints: list[dict[str, str]]) -> dict[str, str]:
    return {endpoint["region"]: endpoint["url"] for endpoint in endpoints}


def test_the_catalog_has_each_instance_and_each_named_scope(
    lab: RunningLab, cloud: dict[str, Any]
) -> None:
    _, services = catalog(cloud)
    assert set(services) == {"identity", "image", "compute", "placement", "network"}
    frontend = f"http://{lab.config.instance('InstanceOne').address}:{PROXY_PORT}"
    every = dict.fromkeys(set(services) - {"identity"}, "InstanceTwo")
    scopes = {"InstanceTwo": Scope(every), "mixed": Scope({"image": "InstanceTwo"})}
    for endpoints in services.values():
        urls = by_region(endpoints)
        assert len(endpoints) == len(urls)
        assert set(urls) == {*lab.config.names, *lab.config.scopes}
        path = urls["InstanceOne"].removeprefix(frontend)
        for region, scope in scopes.items():
            assert urls[region] == f"{frontend}/{scope.url_segment()}{path}"


@pytest.mark.parametrize("name", ["InstanceOne", "InstanceTwo"])
def test_the_home_region_is_first_and_plain(lab: RunningLab, name: str) -> None:
    clouds = yaml.safe_load((lab.config.state / "clouds.yaml").read_text())["clouds"]
    _, services = catalog(clouds[name])
    for endpoints in services.values():
        assert endpoints[0]["region"] == name
        assert "/scope/" not in endpoints[0]["url"]


def test_the_stock_command_lists_images_by_region(stock: Stock, one: Shell, two: Shell) -> None:
    listing = "image list -f value -c ID"
    assert stock(listing) == one.image
    assert stock(f"--os-region-name InstanceOne {listing}") == one.image
    assert stock(f"--os-region-name InstanceTwo {listing}") == two.image
    assert stock(f"--os-region-name mixed {listing}") == two.image


def test_a_client_without_a_region_gets_the_home_endpoints(stock: Stock, one: Shell) -> None:
    cloud = "--os-cloud without-region"
    assert stock(f"{cloud} image list -f value -c ID") == one.image
    hosts = stock(f"{cloud} compute service list -f value -c Host")
    assert set(hosts.splitlines()) == {"InstanceOne"}
    networks = one.openstack("network list -f value -c ID")
    assert stock(f"{cloud} network list -f value -c ID") == networks


def test_the_stock_command_lists_servers_by_region(stock: Stock, two_server: str) -> None:
    listing = "server list --all-projects -f value -c ID"
    assert two_server in stock(f"--os-region-name InstanceTwo {listing}").split()
    assert two_server not in stock(listing).split()
    assert two_server not in stock(f"--os-region-name mixed {listing}").split()


def test_every_service_of_a_region_is_the_other_instances_one(stock: Stock, two: Shell) -> None:
    region = "--os-region-name InstanceTwo"
    networks = two.openstack("network list -f value -c ID")
    assert stock(f"{region} network list -f value -c ID") == networks
    hosts = stock(f"{region} compute service list -f value -c Host")
    assert set(hosts.splitlines()) == {"InstanceTwo"}


def test_the_users_of_a_region_are_those_of_the_tokens_issuer(stock: Stock, one: Shell) -> None:
    users = one.openstack("user list -f value -c ID")
    assert stock("--os-region-name InstanceTwo user list -f value -c ID") == users


@pytest.mark.parametrize("region", ["mixed", "InstanceTwo"])
def test_the_stock_command_makes_a_server_in_a_region(
    stock: Stock, one: Shell, two: Shell, region: str
) -> None:
    options = f"--image {two.image} --flavor m1.tiny --network private --wait"
    created = stock(
        f"--os-region-name {region} server create test-region {options} -f value -c id -c status"
    ).split()
    assert "ACTIVE" in created
    [identifier] = [word for word in created if word != "ACTIVE"]
    rows = f"SELECT image_ref FROM nova.instances WHERE uuid = '{identifier}'"
    there, elsewhere = (one, two) if region == "mixed" else (two, one)
    assert there.sql(rows) == [[two.image]]
    assert elsewhere.sql(rows) == []
    stock(f"--os-region-name {region} server delete {identifier} --wait")


def test_openstacksdk_chooses_by_region(cloud: dict[str, Any], one: Shell, two: Shell) -> None:
    def images(region: str | None) -> list[str]:
        connection = openstack.connection.Connection(
            auth_type=cloud["auth_type"],
            auth=cloud["auth"],
            region_name=region,
            identity_api_version="3",
        )
        with connection:
            return [image.id for image in connection.image.images()]

    assert images(None) == images("InstanceOne") == [one.image]
    assert images("InstanceTwo") == images("mixed") == [two.image]


def test_a_plain_token_is_enough_for_the_endpoints_of_a_region(
    cloud: dict[str, Any], one: Shell, two: Shell
) -> None:
    token, services = catalog(cloud)
    assert "!SCOPE!" not in token

    def images(region: str) -> list[str]:
        url = f"{by_region(services['image'])[region]}/v2/images"
        answer = json.loads(one.run("curl", "-sf", "-H", f"X-Auth-Token: {token}", url))
        return [image["id"] for image in answer["images"]]

    assert images("InstanceOne") == [one.image]
    assert images("InstanceTwo") == images("mixed") == [two.image]


def test_a_named_scope_is_a_cloud(one: Shell, two: Shell) -> None:
    assert one.openstack("--os-cloud mixed image list -f value -c ID") == two.image
    hosts = one.openstack("--os-cloud mixed compute service list -f value -c Host")
    assert set(hosts.splitlines()) == {"InstanceOne"}


def test_an_up_adds_and_removes_regions_and_nothing_else(
    lab: RunningLab, cloud: dict[str, Any], one: Shell, two: Shell
) -> None:
    """Keystone runs on, and sees the new catalog at once."""
    before = catalog(cloud)[1]
    keystone = one.pid("keystone")
    host = lab.host("InstanceOne")
    spec = _spec(lab.config, host)
    more = {**spec.regions, "test-region": {"image": "InstanceTwo", "network": "InstanceTwo"}}
    python = str(host.shared / "venv" / "bin" / "python")

    def up(regions: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
        wanted = dataclasses.replace(spec, regions=regions).to_json()
        lab.ssh("InstanceOne", python, "-m", "lab.wheels", "up", stdin=wanted)
        return catalog(cloud)[1]

    try:
        after = up(more)
        urls = by_region(after["network"])
        scope = Scope(more["test-region"])
        assert f"/{scope.url_segment()}/networking" in urls.pop("test-region")
        assert urls == by_region(before["network"])
        listed = one.openstack("--os-region-name InstanceOne region list -f value -c Region")
        assert "test-region" in listed.split()
        # A region of one's own stays, and so does what is in it.
        one.openstack("region create test-own")
        own = one.json("endpoint create --region test-own image public http://192.0.2.1/")["id"]
        assert up(more)["image"][0]["region"] == "InstanceOne"
        # As with `regions: false`.
        assert set(by_region(up({})["image"])) == {"InstanceOne", "test-own"}
    finally:
        left = up(dict(spec.regions))
    assert by_region(left["image"]).pop("test-own") == "http://192.0.2.1/"
    one.openstack(f"endpoint delete {own}")
    one.openstack("region delete test-own")
    assert catalog(cloud)[1] == before
    assert "test-region" not in one.openstack("region list -f value -c Region").split()
    assert one.pid("keystone") == keystone


def test_a_region_takes_the_place_of_a_scope_for_the_services_that_it_names(
    one: Shell, two: Shell, lab: RunningLab
) -> None:
    images = "image list -f value -c ID"
    assert one.openstack(f"{images} --scope image=InstanceTwo") == two.image
    there = "--os-region-name InstanceTwo"
    assert one.openstack(f"{there} {images} --scope image=InstanceOne") == two.image
    assert one.openstack(f"--os-region-name mixed hypervisor list -f value -c '{HOST}'") == one.name
    mixed = "--os-region-name mixed --scope compute=InstanceTwo"
    assert one.openstack(f"{mixed} hypervisor list -f value -c '{HOST}'") == two.name
    assert one.openstack(f"{mixed} {images}") == two.image
