"""What every instance offers, whatever its stack: the flavors, networks and image of lab.yaml.

``python -m lab.resources DIRECTORY`` on a host creates them in the cloud of ``OS_CLOUD``, with the
JSON of :class:`Resources` on standard input; image files are kept in DIRECTORY. It looks for
everything first, so that a second run creates only what is missing.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lab.image import ImageFile, disk_format, obtain
from lab.parallel import for_each

if TYPE_CHECKING:
    from openstack.connection import Connection
    from openstack.identity.v3._proxy import Proxy as IdentityProxy


@dataclass(frozen=True)
class Resources:
    """*flavors* have ``name``, ``vcpus``, ``ram`` (MiB) and ``disk`` (GiB); *networks* have
    ``name`` and ``cidr``; *image* has ``name`` and ``url`` (or None for a placeholder). *member*,
    if any, is a user of the project ``demo`` and has ``name`` and ``password``. *public*, if any,
    is the external network, and has the ``gateway`` in it (``172.24.1.1/24``).
    """

    flavors: Sequence[Mapping[str, Any]]
    networks: Sequence[Mapping[str, Any]]
    image: Mapping[str, Any]
    member: Mapping[str, str] | None = None
    public: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, for standard input."""
        return json.dumps(asdict(self), sort_keys=True)


def create(cloud: Connection, wanted: Resources, file: ImageFile) -> None:
    """Create what is missing of *wanted* in *cloud*, with an image made of *file*."""
    # What depends on each other is in one job.
    jobs = [lambda: _flavors(cloud, wanted), lambda: _networks(cloud, wanted)]
    jobs.append(lambda: _image(cloud, wanted.image["name"], file))
    if wanted.member:
        member = wanted.member
        jobs.append(lambda: _member(cloud, **member))
    for_each(jobs, lambda job: job())


def _flavors(cloud: Connection, wanted: Resources) -> None:
    for flavor in wanted.flavors:
        if cloud.compute.find_flavor(flavor["name"]) is None:
            cloud.compute.create_flavor(**flavor)


def _networks(cloud: Connection, wanted: Resources) -> None:
    for network in wanted.networks:
        _network(cloud, network["name"], network["cidr"])
    if wanted.public:
        _public(cloud, wanted)


def _network(cloud: Connection, name: str, cidr: str) -> None:
    network = cloud.network.find_network(name) or cloud.network.create_network(
        name=name, is_shared=True
    )
    if not network.subnet_ids:
        cloud.network.create_subnet(
            network_id=network.id, name=f"{name}-subnet", ip_version=4, cidr=cidr
        )


def _public(cloud: Connection, wanted: Resources) -> None:
    """The external network ``public``, and a router from all networks to it."""
    gateway = ipaddress.IPv4Interface(wanted.public["gateway"])
    # Nova offers a server the networks of its project: this one is not for servers.
    owner = cast("IdentityProxy", cloud.identity).find_project("service", ignore_missing=False)
    public = cloud.network.find_network("public") or cloud.network.create_network(
        name="public",
        project_id=owner.id,
        is_router_external=True,
        provider_network_type="flat",
        provider_physical_network="public",
    )
    if not public.subnet_ids:
        cloud.network.create_subnet(
            network_id=public.id,
            name="public-subnet",
            ip_version=4,
            cidr=str(gateway.network),
            gateway_ip=str(gateway.ip),
            enable_dhcp=False,
        )
    router = cloud.network.find_router("router") or cloud.network.create_router(
        name="router", external_gateway_info={"network_id": public.id}
    )
    connected = {
        address["subnet_id"]
        for port in cloud.network.ports(device_id=router.id)
        for address in port.fixed_ips
    }
    for network in wanted.networks:
        found = cloud.network.find_network(network["name"], ignore_missing=False)
        for subnet in set(found.subnet_ids) - connected:
            cloud.network.add_interface_to_router(router, subnet=subnet)


def _image(cloud: Connection, name: str, file: ImageFile) -> None:
    for image in cloud.image.images(name=name):
        if image.status == "active":
            return
        cloud.image.delete_image(image.id)
    cloud.image.create_image(
        name=name,
        filename=file.path,
        disk_format=disk_format(Path(file.path)),
        container_format="bare",
        visibility="public",
        validate_checksum=False,
        meta=dict(file.properties),
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

    wanted = Resources(**json.loads(sys.stdin.read()))
    file = obtain(wanted.image["url"], Path(sys.argv[1]), print)
    create(openstack.connect(), wanted, file)


if __name__ == "__main__":
    main()
