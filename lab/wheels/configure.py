"""The configuration files of an instance, from the templates beside this module."""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jinja2

from lab import files, logs
from lab.wheels.layout import CONSOLE_PORT, DATABASE_PORT, MESSAGING_PORT, Layout
from lab.wheels.programs import programs
from lab.wheels.services import THREADS
from lab.wheels.spec import HTTPS_PORT, PROXY_PORT, TLS_PORT
from openstackoid.proxy.config import Https, Peer, Policy, Proxy, Service, Tls, write

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("lab.wheels"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - configuration files, no HTML
)

#: Configuration of what the services need, below ``etc``: from the template of the file's name.
_BACKING_FILES = ("mariadb.cnf", "accounts.sql", "rabbitmq/rabbitmq.conf")
_DIRECTORIES = ("etc/proxy", "run", "log", "data/rabbitmq")


def proxy(layout: Layout) -> Proxy:
    """What the generator of the scope-aware proxy is told about this instance."""
    address, own = layout.spec.address, layout.etc / "certificate.pem"
    return Proxy(
        name=layout.spec.name,
        bind=f"{address}:{PROXY_PORT}",
        services=tuple(
            Service(
                service.type,
                service.prefix,
                layout.url(service),
                keep_alive=True,
                # Half of the usual threads are left for requests that wait for no other instance.
                # Keystone's only thread never waits for one.
                max_foreign=THREADS // 2,
                bare=layout.has_ports,
                frontends=layout.frontends(service),
            )
            for service in layout.services
        ),
        peers=tuple(
            Peer(name, address, layout.spec.sealed, layout.spec.tls)
            for name, address in layout.spec.peers.items()
        ),
        issuers=tuple(layout.spec.issuers),
        policies=tuple(Policy(issuer, **one) for issuer, one in layout.spec.policies.items()),
        directory=layout.etc / "proxy",
        tls=Tls(own, layout.etc / "ca.pem", f"{address}:{TLS_PORT}") if layout.spec.tls else None,
        https=Https(own, f"{address}:{HTTPS_PORT}") if layout.spec.https else None,
    )


def configure_guests(layout: Layout, accelerator: str) -> None:
    """Tell nova-compute what runs guests: *accelerator* is ``kvm`` or ``qemu``."""
    text = _render("nova-compute.conf", {**_context(layout), "accelerator": accelerator})
    files.write(layout.etc / "nova" / "nova-compute.conf", text)


def configure(layout: Layout) -> bool:
    """Write every configuration file that is not up to date.

    :return: whether the proxy's configuration changed (it reloads without a restart).
    """
    rendered = (*_BACKING_FILES, *(name for one in layout.services for name in one.configuration))
    directories = (*_DIRECTORIES, *(name for one in layout.services for name in one.directories))
    for path in (
        *(layout.directory / name for name in directories),
        *((layout.etc / name).parent for name in rendered),
    ):
        path.mkdir(parents=True, exist_ok=True)
    layout.directory.chmod(0o700)
    context = _context(layout)
    files.write(layout.etc / "rabbitmq" / "enabled_plugins", "[].\n")
    files.write(layout.etc / "rabbitmq" / "rabbitmq-env.conf", "")
    # Erlang itself would make a weak one.
    files.write(layout.data / "rabbitmq" / ".erlang.cookie", layout.spec.passwords["erlang"])
    for service in layout.services:
        for name in service.shipped:
            files.write(layout.directory / name, (layout.prefix / name).read_text())
        for name in service.empty:
            files.write(layout.directory / name, "")
    if layout.spec.has_guests:
        files.write(layout.etc / "namespace.cfg", _render("namespace.cfg", context))
    for name in rendered:
        files.write(layout.etc / name, _render(Path(name).name, context))
    every = programs(layout)
    context["programs"] = every
    context["digests"] = {program.name: _digest(layout, program.files) for program in every}
    files.write(layout.etc / "supervisord.conf", _render("supervisord.conf", context))
    _home(layout)
    certified = [
        files.write(layout.etc / f"{name}.pem", text)
        for name, text in layout.spec.certificates.items()
    ]
    return bool(write(proxy(layout))) or any(certified)


def _context(layout: Layout) -> dict[str, object]:
    """What every template is told."""
    return {
        "spec": layout.spec,
        "layout": layout,
        "limits": logs.limits,
        "passwords": layout.spec.passwords,
        "database_port": DATABASE_PORT,
        "messaging_port": MESSAGING_PORT,
        "proxy_port": PROXY_PORT,
        "console_port": CONSOLE_PORT,
        "user": getpass.getuser(),
        "erlang_address": layout.spec.address.replace(".", ","),
    }


def _home(layout: Layout) -> None:
    """Make ``openstack`` work at once in the instance's shell."""
    layout.home.mkdir(parents=True, exist_ok=True)
    text = f'PATH="{layout.prefix}/bin:$PATH"\nexport PATH OS_CLOUD={layout.spec.name}\n'
    # On a machine, root may write it for the user who logs in.
    files.write(layout.home / ".profile", text, 0o644)


def _render(template: str, context: Mapping[str, object]) -> str:
    return _TEMPLATES.get_template(f"{template}.j2").render(context)


def _digest(layout: Layout, files: tuple[str, ...]) -> str:
    # What runs from an installation that was replaced has to start again.
    digest = hashlib.sha256((layout.prefix / "installed").read_bytes())
    for name in files:
        digest.update((layout.etc / name).read_bytes())
    return digest.hexdigest()[:12]
