"""Keystone's catalog: the instance's own region, and one for each scope that has a name.

The endpoints of another region are scoped URLs of the instance's own proxy. A client that chooses a
region gets its scope, and needs to know nothing about scopes.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lab.wheels.layout import Layout
from lab.wheels.spec import Spec

if TYPE_CHECKING:
    from keystone.catalog.backends.sql import Catalog

_NAMESPACE = uuid.UUID("5bd3b4d8-8fd6-4f0b-93a4-4c1c0f2a9a11")


def endpoints(layout: Layout) -> dict[tuple[str, str, str], str]:
    """The URL of each service type, by region, type and interface; the own region comes first.

    Services of the instance use the interface ``internal`` of its region, if that is another one.
    """
    scopes: Mapping[str, Mapping[str, str] | None] = {
        layout.spec.name: None,
        **layout.spec.regions,
    }
    found = {
        (region, service.type, "public"): layout.public_endpoint(service.type, scope)
        for region, scope in scopes.items()
        for service in layout.services
    }
    if layout.interface != "public":
        found |= {
            (layout.spec.name, service.type, layout.interface): layout.endpoint(service.type)
            for service in layout.services
        }
    return found


def digest(layout: Layout) -> str:
    """A digest of all that decides what the catalog is."""
    parts = [(*key, url) for key, url in endpoints(layout).items()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _id(home: str, region: str | None, service_type: str, interface: str) -> str:
    """The ID of an endpoint in the catalog of *home*, the same one each time.

    Keystone lists endpoints in the order of their IDs, and a client without a region takes the
    first one: that has to be the instance's own.
    """
    name = f"{region}/{service_type}"
    made = uuid.uuid5(_NAMESPACE, name if interface == "public" else f"{name}/{interface}").hex
    return f"{'0' * 8}{made[8:]}" if region == home else made


def write(layout: Layout, driver: Catalog) -> None:
    """Make the catalog of *driver* that of *layout*, leaving alone what others have in it."""
    from keystone.common.driver_hints import Hints  # noqa: PLC0415 - only where keystone is

    home = layout.spec.name
    wanted = endpoints(layout)
    types = {entry["id"]: entry["type"] for entry in driver.list_services(Hints())}
    for service in layout.services:
        if service.type not in types.values():
            identifier = uuid.uuid4().hex
            fields = {"type": service.type, "name": service.name, "enabled": True}
            driver.create_service(identifier, {"id": identifier, **fields})
            types[identifier] = service.type
    service_ids = {kind: identifier for identifier, kind in types.items()}
    made = {
        _id(home, region, kind, interface): {
            "interface": interface,
            "region_id": region,
            "service_id": service_ids[kind],
            "url": url,
            "enabled": True,
        }
        for (region, kind, interface), url in wanted.items()
    }
    found = {one["id"]: one for one in driver.list_endpoints(Hints())}
    emptied = set()
    for identifier, one in found.items():
        region, kind = one["region_id"], types[one["service_id"]]
        ours = identifier == _id(home, region, kind, one["interface"])
        # Keystone's bootstrap and earlier versions of the lab gave them other IDs.
        replaced = (region, kind, one["interface"]) in wanted
        if identifier not in made and (ours or replaced):
            driver.delete_endpoint(identifier)
            emptied.add(region)
    named = {region for region, _, _ in wanted}
    occupied = {one["region_id"] for one in driver.list_endpoints(Hints())}
    for region in emptied - named - occupied:
        driver.delete_region(region)
    for region in named - {region["id"] for region in driver.list_regions(Hints())}:
        driver.create_region({"id": region, "description": ""})
    for identifier, fields in made.items():
        if identifier not in found:
            driver.create_endpoint(identifier, {"id": identifier, **fields})
        elif any(found[identifier][name] != value for name, value in fields.items()):
            driver.update_endpoint(identifier, fields)


def _forget(layout: Layout) -> None:
    """Have the running keystone drop the catalogs that it has cached, as any change of one does."""
    from keystoneauth1.identity.v3 import Password  # noqa: PLC0415 - only where keystone is
    from keystoneauth1.session import Session  # noqa: PLC0415

    administrator = Password(
        layout.auth_url,
        username="admin",
        password=layout.spec.passwords["admin"],
        project_name="admin",
        user_domain_name="Default",
        project_domain_name="Default",
    )
    url = f"{layout.auth_url}/regions/{layout.spec.name}"
    Session(administrator).patch(url, json={"region": {"parent_region_id": None}})


def main() -> None:
    """Entry of a fork: the specification is in ``SPEC``, in ``KEYSTONE_RUNS`` whether it does."""
    import keystone.server  # noqa: PLC0415 - only where keystone is
    from keystone.catalog.backends.sql import Catalog  # noqa: PLC0415

    layout = Layout(Spec.from_json(os.environ["SPEC"]))
    configuration = layout.etc / layout.service("identity").configuration[0]
    keystone.server.configure(config_files=[str(configuration)])
    write(layout, Catalog())
    if int(os.environ["KEYSTONE_RUNS"]):
        _forget(layout)
