"""Clients that use HTTPS: the catalog, ``clouds.yaml`` and links say so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.wheels.spec import HTTPS_PORT
from tests.conftest import RunningLab

ONE, TWO = "InstanceOne", "InstanceTwo"


@pytest.fixture(scope="module")
def https(three: RunningLab) -> Iterator[RunningLab]:
    """The lab, where InstanceOne takes clients by HTTPS."""
    description = three.config.root / "lab.yaml"
    text = description.read_text()
    description.write_text(text.replace("https: false", "https: true"))
    three.setup_env("up", ONE, "--no-attach")
    yield three
    description.write_text(text)
    three.setup_env("up", "--no-attach")


def test_every_public_endpoint_is_by_https(https: RunningLab) -> None:
    command = "openstack endpoint list -f json --interface public"
    urls = [one["URL"] for one in json.loads(https.ssh(ONE, *command.split()).stdout)]
    address = https.config.instance(ONE).address
    assert urls
    assert [url for url in urls if not url.startswith(f"https://{address}:{HTTPS_PORT}/")] == []


def test_a_server_is_made_by_https_from_an_image_elsewhere(https: RunningLab) -> None:
    options = ["--image", "cirros", "--flavor", "m1.tiny", "--network", "private", "--wait"]
    create = ["openstack", "server", "create", "by-https", *options, "-f", "json"]
    made = json.loads(https.ssh(ONE, *create, "--scope", f"image={TWO}").stdout)
    assert made["status"] == "ACTIVE"
    https.ssh(ONE, "openstack", "server", "delete", "--wait", made["id"])


def test_links_lead_back_by_https(https: RunningLab) -> None:
    listed = https.ssh(ONE, "openstack", "image", "list", "--scope", f"image={TWO}", "--debug")
    assert "http://" not in listed.stdout
    versions = https.ssh(ONE, "openstack", "versions", "show", "-f", "json")
    ours = [one for one in json.loads(versions.stdout) if one["Region Name"] == ONE]
    assert ours
    assert {one["Endpoint"].partition(":")[0] for one in ours} == {"https"}


def test_a_client_that_does_not_know_the_authority_refuses(https: RunningLab) -> None:
    command = "openstack --os-cacert /etc/ssl/certs/ca-certificates.crt image list"
    refused = https.ssh(ONE, *command.split(), check=False)
    assert refused.returncode != 0
    assert "certificate verify failed" in refused.stderr
