"""The configuration files of an instance, from the templates beside this module."""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Mapping

import jinja2

from lab import files
from lab.wheels.layout import (
    APIS,
    DATABASE_PORT,
    MESSAGING_PORT,
    PROXY_PORT,
    Layout,
)
from lab.wheels.programs import programs
from lab.wheels.wsgi import THREADS
from openstackoid.proxy.config import Peer, Proxy, Service, write

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("lab.wheels"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - configuration files, no HTML
)

#: Template → where it goes, relative to the instance's directory.
_FILES = {
    "mariadb.cnf": "etc/mariadb.cnf",
    "accounts.sql": "etc/accounts.sql",
    "rabbitmq.conf": "etc/rabbitmq/rabbitmq.conf",
    "keystone.conf": "etc/keystone/keystone.conf",
    "glance-api.conf": "etc/glance/glance-api.conf",
    "nova.conf": "etc/nova/nova.conf",
    "placement.conf": "etc/placement/placement.conf",
    "neutron.conf": "etc/neutron/neutron.conf",
    "ml2_conf.ini": "etc/neutron/ml2_conf.ini",
    "supervisord.conf": "etc/supervisord.conf",
}

_DIRECTORIES = (
    "etc/rabbitmq",
    "etc/keystone/fernet-keys",
    "etc/keystone/credential-keys",
    "etc/glance",
    "etc/nova",
    "etc/placement",
    "etc/neutron",
    "etc/proxy",
    "run",
    "log",
    "data/images",
    "data/nova/instances",
    "data/neutron",
    "data/rabbitmq",
)

#: Pipelines that the services ship, copied because they look for them beside their configuration.
_PASTE = {
    "etc/glance/glance-api-paste.ini": "etc/glance/glance-api-paste.ini",
    "etc/nova/api-paste.ini": "etc/nova/api-paste.ini",
    "etc/neutron/api-paste.ini": "etc/neutron/api-paste.ini",
}


def proxy(layout: Layout) -> Proxy:
    """What the generator of the scope-aware proxy is told about this instance."""
    return Proxy(
        name=layout.spec.name,
        bind=f"{layout.spec.address}:{PROXY_PORT}",
        services=tuple(
            Service(
                api.type,
                api.prefix,
                layout.url(api.type),
                keep_alive=True,
                # Half of the threads are left for requests that wait for no other instance.
                max_foreign=THREADS // 2,
            )
            for api in APIS
        ),
        peers=tuple(Peer(name, address) for name, address in layout.spec.peers.items()),
        issuers=tuple(layout.spec.issuers),
        directory=layout.etc / "proxy",
    )


def configure(layout: Layout) -> bool:
    """Write every configuration file that is not up to date.

    :return: whether the proxy's configuration changed (it reloads without a restart).
    """
    for name in _DIRECTORIES:
        (layout.directory / name).mkdir(parents=True, exist_ok=True)
    layout.directory.chmod(0o700)
    context: dict[str, object] = {
        "spec": layout.spec,
        "layout": layout,
        "passwords": layout.spec.passwords,
        "database_port": DATABASE_PORT,
        "messaging_port": MESSAGING_PORT,
        "user": getpass.getuser(),
        "erlang_address": layout.spec.address.replace(".", ","),
    }
    for source, target in _PASTE.items():
        files.write(layout.directory / target, (layout.prefix / source).read_text())
    files.write(layout.etc / "glance" / "glance-image-import.conf", "")
    files.write(layout.etc / "rabbitmq" / "enabled_plugins", "[].\n")
    files.write(layout.etc / "rabbitmq" / "rabbitmq-env.conf", "")
    # Erlang itself would make a weak one.
    files.write(layout.data / "rabbitmq" / ".erlang.cookie", layout.spec.passwords["erlang"])
    for template, target in _FILES.items():
        if template != "supervisord.conf":
            files.write(layout.directory / target, _render(template, context))
    context["programs"] = programs(layout)
    context["digests"] = {
        program.name: _digest(layout, program.files) for program in programs(layout)
    }
    files.write(layout.directory / _FILES["supervisord.conf"], _render("supervisord.conf", context))
    _home(layout)
    return bool(write(proxy(layout)))


def _home(layout: Layout) -> None:
    """Make ``openstack`` work at once in the instance's shell."""
    layout.home.mkdir(parents=True, exist_ok=True)
    files.write(
        layout.home / ".profile",
        f'PATH="{layout.prefix}/bin:$PATH"\nexport PATH OS_CLOUD={layout.spec.name}\n',
    )


def _render(template: str, context: Mapping[str, object]) -> str:
    return _TEMPLATES.get_template(f"{template}.j2").render(context)


def _digest(layout: Layout, files: tuple[str, ...]) -> str:
    # What runs from an installation that was replaced has to start again.
    digest = hashlib.sha256((layout.prefix / "installed").read_bytes())
    for name in files:
        digest.update((layout.etc / name).read_bytes())
    return digest.hexdigest()[:12]
