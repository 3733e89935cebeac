"""What every instance offers, whatever its stack: the flavors, networks and image of lab.yaml.

``python -m lab.offers DIRECTORY`` on a host makes them in the cloud of ``OS_CLOUD``, with the JSON
of :class:`Offers` on standard input; image files are kept in DIRECTORY. Everything is found before
it is made, so that a second run makes only what is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lab.image import PLACEHOLDER, disk_format, obtain

if TYPE_CHECKING:
    from openstack.connection import Connection
    from openstack.identity.v3._proxy import Proxy as IdentityProxy


@dataclass(frozen=True)
class Offers:
    """*flavors* have ``name``, ``vcpus``, ``ram`` (MiB) and ``disk`` (GiB); *networks* have
    ``name`` and ``cidr``; *image* has ``name`` and ``url`` (or None for a placeholder). *member*,
    if any, is a user of the project ``demo`` and has ``name`` and ``password``.
    """

    flavors: Sequence[Mapping[str, Any]]
    networks: Sequence[Mapping[str, Any]]
    image: Mapping[str, Any]
    member: Mapping[str, str] | None = None

    def to_json(self) -> str:
        """One line of JSON, for standard input."""
        return json.dumps(asdict(self), sort_keys=True)


def create(cloud: Connection, offers: Offers, file: Path) -> None:
    """Make what is missing of *offers* in *cloud*; the image is made of *file*."""
    for flavor in offers.flavors:
        if cloud.compute.find_flavor(flavor["name"]) is None:
            cloud.compute.create_flavor(**flavor)
    for network in offers.networks:
        _network(cloud, network["name"], network["cidr"])
    _image(cloud, offers.image["name"], file)
    if offers.member:
        _member(cloud, **offers.member)


def _network(cloud: Connection, name: str, cidr: str) -> None:
    network = cloud.network.find_network(name) or cloud.network.create_network(
        name=name, is_shared=True
    )
    if not network.subnet_ids:
        cloud.network.create_subnet(
            network_id=network.id, name=f"{name}-subnet", ip_version=4, cidr=cidr
        )


def _image(cloud: Connection, name: str, file: Path) -> None:
    for image in cloud.image.images(name=name):
        if image.status == "active":
            return
        cloud.image.delete_image(image.id)
    properties = {}
    if file.name == PLACEHOLDER:
        properties = {
            "openstackoid_placeholder": "true",
            "description": "a placeholder for the fake hypervisor, which boots nothing",
        }
    cloud.image.create_image(
        name=name,
        filename=str(file),
        disk_format=disk_format(file),
        container_format="bare",
        visibility="public",
        validate_checksum=False,
        meta=dict(properties),
    )


def _member(cloud: Connection, name: str, password: str) -> None:
    identity = cast("IdentityProxy", cloud.identity)
    project = identity.find_project("demo") or identity.create_project(name="demo")
    user = identity.find_user(name) or identity.create_user(
        name=name, password=password, default_project_id=project.id
    )
    role = identity.find_role("member", ignore_missing=False)
    identity.assign_project_role_to_user(project, user, role)


def main() -> None:
    """See the module's documentation."""
    import openstack  # noqa: PLC0415 - the orchestrator imports this module and has no need of it

    offers = Offers(**json.loads(sys.stdin.read()))
    file = obtain(offers.image["url"], Path(sys.argv[1]), print)
    create(openstack.connect(), offers, file)


if __name__ == "__main__":
    main()
