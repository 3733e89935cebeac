"""Clouds of both styles of endpoints, and proxies that are made from their lists of endpoints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.wheels.spec import PROXY_PORT, TLS_PORT
from tests.conftest import RunningLab
from tests.labs.proxies import (
    COLUMNS,
    LIST,
    MOVED,
    ONE,
    SERVICES,
    THREE,
    openstackoid_proxy,
    proxies_of_lists,
    running_haproxy,
    without_proxy,
)

CREATE = ("openstack", "server", "create", "test", "--image", "cirros", "--flavor", "m1.nano")
OPTIONS = ("--network", "private", "--wait", "-f", "json")
OWN_REGION = ("--region-name", THREE)
#: The ports of the services, and those to which this lab moves them.
PORTS = {port: port + MOVED for port in SERVICES.values()}

Creates = Callable[[str, str], "dict[str, str]"]


@pytest.fixture
def creates(three: RunningLab) -> Creates:
    """Creates a server in an instance's shell, with a scope, and removes it."""

    def create(name: str, scope: str) -> dict[str, str]:
        made = three.ssh(name, *CREATE, *OPTIONS, "--scope", scope)
        three.ssh(name, "openstack", "server", "delete", "test", "--scope", scope)
        found: dict[str, str] = json.loads(made.stdout)
        return found

    return create


@pytest.fixture(scope="module")
def images(three: RunningLab) -> dict[str, str]:
    """The ID of each instance's image."""
    show = ("openstack", "image", "show", "cirros", "-f", "value", "-c", "id")
    return {name: three.ssh(name, *show).stdout.strip() for name in three.config.names}


@pytest.mark.parametrize(
    ("name", "scope", "image"),
    [
        (THREE, "compute=InstanceOne,network=InstanceOne", THREE),
        (THREE, "identity=InstanceOne", THREE),
        (ONE, "identity=InstanceThree,compute=InstanceThree,network=InstanceThree", ONE),
    ],
)
def test_scopes_lead_between_clouds_of_paths_and_of_ports(
    creates: Creates, images: dict[str, str], name: str, scope: str, image: str
) -> None:
    made = creates(name, scope)
    assert made["status"] == "ACTIVE"
    assert images[image] in made["image"]


def test_a_region_leads_from_ports_to_another_instance(
    three: RunningLab, images: dict[str, str]
) -> None:
    found = three.ssh(THREE, "openstack", "--os-region-name", ONE, "image", "list", "-f", "json")
    assert [image["ID"] for image in json.loads(found.stdout)] == [images[ONE]]


def test_links_stay_at_the_port_that_was_asked(three: RunningLab) -> None:
    address = three.config.instance(THREE).address
    shown = three.ssh(THREE, "openstack", "versions", "show", "-f", "json", *OWN_REGION)
    endpoints = {version["Endpoint"].rstrip("/") for version in json.loads(shown.stdout)}
    assert f"http://{address}:5000/v3" in endpoints
    assert f"http://{address}:8774/v2.1" in endpoints
    assert all(url.startswith(f"http://{address}:") for url in endpoints)
    assert not any(f":{PROXY_PORT}" in url or "/compute" in url for url in endpoints)


def _curl(*options: str) -> tuple[int, str]:
    command = ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body or done.stderr


@pytest.fixture
def token(three: RunningLab) -> str:
    issue = ("openstack", "token", "issue", "-f", "value", "-c", "id")
    return three.ssh(THREE, *issue).stdout.strip()


def test_a_forward_proxy_routes_by_scope(
    three: RunningLab, images: dict[str, str], token: str
) -> None:
    address = three.config.instance(THREE).address
    frontend = f"http://{address}:{PROXY_PORT}"
    backend = f"http://{address}:{PORTS[9292]}/v2/images"
    headers = ("-H", f"X-Auth-Token: {token}")
    for scope, name in (("{}", THREE), ('{"image": "InstanceOne"}', ONE)):
        status, body = _curl("-x", frontend, *headers, "-H", f"X-Scope: {scope}", backend)
        assert status == 200, body
        assert [image["id"] for image in json.loads(body)["images"]] == [images[name]]


def test_a_forward_proxy_leads_nowhere_else(three: RunningLab) -> None:
    address = three.config.instance(THREE).address
    frontend = f"http://{address}:{PROXY_PORT}"
    for url in (f"http://{address}:3306/", "http://example.org/", "http://127.0.0.1:22/"):
        status, body = _curl("-x", frontend, url)
        assert status == 403
        assert json.loads(body)["error"]["message"].startswith(
            "the proxy of InstanceThree forwards to its own services only"
        )
    # curl itself reports the answer to CONNECT.
    _, error = _curl("-x", frontend, f"https://{address}:{PORTS[9292]}/")
    assert "403" in error


def _plain(host: str, backend: str) -> str:
    """What HAProxy is in many clouds: one ``listen`` section for each service."""
    sections = [
        f"listen service_{port}\n    bind {host}:{port}\n    server one {backend}:{behind}\n"
        for port, behind in PORTS.items()
    ]
    timeouts = "".join(f"    timeout {name} 60s\n" for name in ("client", "connect", "server"))
    return f"defaults\n    mode http\n{timeouts}\n" + "\n".join(sections)


def test_a_cloud_behind_haproxy_becomes_scope_aware_and_plain_again(
    three: RunningLab, creates: Creates, images: dict[str, str], tmp_path: Path
) -> None:
    here, there = (str(three.config.instance(name).address) for name in (THREE, ONE))
    lists = {name: tmp_path / f"{name}.json" for name in (THREE, ONE)}
    for name, path in lists.items():
        path.write_text(three.ssh(name, *LIST, *COLUMNS).stdout)
    etc = three.config.state / THREE / "etc"
    haproxy, directory = tmp_path / "haproxy.cfg", tmp_path / "proxy"
    behind = here.removesuffix(".1") + ".101"
    show = ("openstack", "image", "show", "cirros", "-f", "value", "-c", "id")

    with without_proxy(three, THREE):
        haproxy.write_text(_plain(here, here))
        with running_haproxy(haproxy):
            assert three.ssh(THREE, *show).stdout.strip() == images[THREE]
            scoped = three.ssh(THREE, *show, "--scope", "image=InstanceOne", check=False)
            assert scoped.returncode != 0

        haproxy.write_text(_plain(behind, here))
        made = openstackoid_proxy(
            three,
            *("check", "--instance", THREE, "--directory", str(directory)),
            *("--endpoints", str(lists[THREE]), "--endpoints", str(lists[ONE])),
            *("--peer", f"{ONE}=https://{there}:{TLS_PORT}", "--issuer", ONE, "--behind", behind),
            *("--tls-bind", f"{here}:{TLS_PORT}", "--certificate", str(etc / "certificate.pem")),
            *("--ca", str(etc / "ca.pem")),
        )
        assert made.returncode == 0, made.stderr
        assert "InstanceTwo" not in (directory / "facts.lua").read_text()
        with running_haproxy(haproxy), running_haproxy(directory / "haproxy.cfg"):
            created = creates(THREE, "image=InstanceOne")
            assert created["status"] == "ACTIVE"
            assert images[ONE] in created["image"]

        haproxy.write_text(_plain(here, here))
        with running_haproxy(haproxy):
            assert three.ssh(THREE, *show).stdout.strip() == images[THREE]


def test_the_lists_of_two_clouds_make_their_proxies(
    three: RunningLab, creates: Creates, images: dict[str, str], tmp_path: Path
) -> None:
    with proxies_of_lists(three, tmp_path):
        made_in_three = creates(THREE, "image=InstanceOne")
        made_in_one = creates(ONE, "image=InstanceThree")
    assert images[ONE] in made_in_three["image"]
    assert images[THREE] in made_in_one["image"]
