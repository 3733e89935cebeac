"""What an instance has in it, as DevStack gives it: accounts, flavors, a network and an image.

Everything is found before it is made, so that a second run makes only what is missing.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import openstack
from openstack.connection import Connection
from openstack.identity.v3._proxy import Proxy as IdentityProxy
from openstack.identity.v3.project import Project
from openstack.identity.v3.user import User

from lab.image import ImageFile
from lab.resources import Resources, create
from lab.wheels.layout import Layout
from lab.wheels.services import Service
from lab.wheels.spec import Spec


def connect(layout: Layout) -> Connection:
    """The instance's administrator."""
    return openstack.connection.Connection(
        auth={
            "auth_url": layout.auth_url,
            "username": "admin",
            "password": layout.spec.passwords["admin"],
            "project_name": "admin",
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        },
        region_name=layout.spec.name,
        interface=layout.interface,
        identity_api_version="3",
    )


def create_accounts(layout: Layout) -> None:
    """Make the services' accounts and the user ``demo``.

    A service's account has the role ``service`` in the project ``service``. The vanilla policies of
    all services ask for no more, with one exception that its record explains.
    """
    identity = cast("IdentityProxy", connect(layout).identity)
    passwords = layout.spec.passwords
    roles = {role.name: role for role in identity.roles()}
    if "service" not in roles:
        roles["service"] = identity.create_role(name="service")
    project = _project(identity, "service")
    users = {user.name: user for user in identity.users()}

    def account(name: str, project: Project) -> User:
        return users.get(name) or identity.create_user(
            name=name, password=passwords[name], default_project_id=project.id
        )

    def service_account(service: Service) -> None:
        user = account(service.name, project)
        for role in service.roles:
            identity.assign_project_role_to_user(project, user, roles[role])
        if "admin" not in service.roles:
            # Earlier versions of the lab assigned it.
            identity.unassign_project_role_from_user(project, user, roles["admin"])

    def demo() -> None:
        home = _project(identity, "demo")
        identity.assign_project_role_to_user(home, account("demo", home), roles["member"])
        identity.assign_project_role_to_user(home, users["admin"], roles["admin"])

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(service_account, one) for one in layout.services if one.account]
        jobs.append(pool.submit(demo))
        for job in jobs:
            job.result()


def create_resources(layout: Layout) -> None:
    """Make what lab.yaml lists; the image's file is in ``IMAGE``."""
    spec = layout.spec
    wanted = Resources(spec.flavors, spec.networks, spec.image, public=spec.public)
    create(connect(layout), wanted, ImageFile.from_json(os.environ["IMAGE"]))


def _project(identity: IdentityProxy, name: str) -> Project:
    return identity.find_project(name) or identity.create_project(name=name)


def main() -> None:
    """Entry of a fork: ``NAME PHASE`` in ``sys.argv``, the specification in ``SPEC``.

    The phase ``resources`` finds the image's file in ``IMAGE``.
    """
    layout = Layout(Spec.from_json(os.environ["SPEC"]))
    {"accounts": create_accounts, "resources": create_resources}[sys.argv[1]](layout)
