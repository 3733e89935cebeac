"""A service that only one cloud has, and none of the lab: barbican, in InstanceThree."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

import pytest

from lab.wheels.spec import PROXY_PORT
from tests.conftest import ROOT, RunningLab
from tests.labs.proxies import MOVED, ONE, THREE, proxies_of_lists

#: The port of barbican's endpoint (barbican's installation guide).
PORT = 9311
SCOPE = ("--scope", '{"key-manager": "InstanceThree"}')
CONFIGURATION = Template("""\
[database]
connection = sqlite:///$directory/barbican.sqlite

[secretstore]
enabled_secretstore_plugins = store_crypto

[crypto]
enabled_crypto_plugins = simple_crypto

[simple_crypto_plugin]
kek = $key

[oslo_middleware]
enable_proxy_headers_parsing = true

[keystone_authtoken]
www_authenticate_uri = $auth_url
auth_url = $auth_url
auth_type = password
interface = public
region_name = InstanceThree
username = barbican
password = $password
user_domain_name = Default
project_name = service
project_domain_name = Default
service_token_roles = service
service_token_roles_required = true
""")


@dataclass(frozen=True)
class Barbican:
    """Barbican's API, in a virtual environment and a directory of its own."""

    directory: Path
    address: tuple[str, int]

    def install(self) -> None:
        uv, venv = str(Path(sys.prefix) / "bin" / "uv"), str(self.directory / "venv")
        constraints = str(ROOT / "constraints.txt")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
        subprocess.run(
            [
                *(uv, "pip", "install", "--quiet", "--python", f"{venv}/bin/python"),
                *("--constraints", constraints, "--build-constraints", constraints),
                *("barbican", "pyuwsgi"),
            ],
            check=True,
        )

    def configure(self, auth_url: str, password: str) -> None:
        """Write barbican.conf where oslo.config looks for it, and make the database."""
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        path = self.directory / ".barbican" / "barbican.conf"
        path.parent.mkdir()
        path.write_text(
            CONFIGURATION.substitute(
                directory=self.directory, key=key, auth_url=auth_url, password=password
            )
        )
        subprocess.run(
            self._command("barbican-db-manage", "upgrade"),
            env=self._environment,
            check=True,
            capture_output=True,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        host, port = self.address
        log = self.directory / "log"
        paste = self.directory / "venv" / "etc" / "barbican" / "barbican-api-paste.ini"
        command = self._command(
            *("uwsgi", "--http-socket", f"{host}:{port}", "--paste", f"config:{paste}"),
            *("--enable-threads", "--threads", "4", "--need-app", "--die-on-term"),
            # A sealed token with its scope is a long header.
            *("--buffer-size", "65535"),
        )
        with (
            log.open("wb") as stream,
            subprocess.Popen(
                command, env=self._environment, stdout=stream, stderr=stream
            ) as process,
        ):
            try:
                while not _listens(self.address):
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.1)
                yield
            finally:
                process.terminate()

    def rows(self, statement: str) -> list[tuple[str, ...]]:
        """Rows of the database."""
        with closing(sqlite3.connect(self.directory / "barbican.sqlite")) as connection:
            return connection.execute(statement).fetchall()

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.directory)}

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.directory / "venv" / "bin" / program), *arguments]


def _listens(address: tuple[str, int]) -> bool:
    with closing(socket.socket()) as connection:
        return connection.connect_ex(address) == 0


@contextmanager
def registered(three: RunningLab, password: str) -> Iterator[None]:
    """Barbican's account in InstanceThree, and an endpoint in each of the two catalogs."""
    home, there = (three.config.instance(name).address for name in (ONE, THREE))
    service = "service create --name barbican key-manager"
    endpoint = "endpoint create --region {} key-manager public {}"
    account = f"user create --password {password} barbican"
    role = "role add --user barbican --project service service"
    # docs/existing-clouds.org says why this path has a version.
    own = endpoint.format(ONE, f"http://{home}:{PROXY_PORT}/key-manager/v1")
    _run(three, THREE, account, role, service, endpoint.format(THREE, f"http://{there}:{PORT}"))
    try:
        _run(three, ONE, service, own)
        try:
            yield
        finally:
            # Its endpoints go with a service.
            _run(three, ONE, "service delete barbican")
    finally:
        _run(three, THREE, "service delete barbican", "user delete barbican")


def _run(three: RunningLab, name: str, *commands: str) -> None:
    """Run ``openstack`` commands, each of which has to succeed, in the instance *name*."""
    three.ssh(name, "sh", "-ec", "\n".join(f"openstack {command}" for command in commands))


@pytest.fixture(scope="module")
def barbican(three: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Barbican]:
    """Barbican in InstanceThree, and proxies that know it; afterwards, there is no trace of it."""
    there = str(three.config.instance(THREE).address)
    password = secrets.token_hex(16)
    with TemporaryDirectory(dir=tmp_path_factory.mktemp("another")) as directory:
        found = Barbican(Path(directory), (there, PORT + MOVED))
        found.install()
        found.configure(f"http://{there}:5000/v3", password)
        backends = {THREE: {"key-manager": f"http://{there}:{PORT + MOVED}"}}
        with (
            found.running(),
            registered(three, password),
            proxies_of_lists(three, Path(directory), backends),
        ):
            yield found


@pytest.mark.parametrize(("name", "scope"), [(ONE, SCOPE), (THREE, ())])
def test_a_secret_is_where_the_scope_says(
    three: RunningLab, barbican: Barbican, name: str, scope: tuple[str, ...]
) -> None:
    def secret(*arguments: str) -> subprocess.CompletedProcess[str]:
        return three.ssh(name, "openstack", "secret", *arguments, *scope)

    stored = json.loads(secret("store", "--name", "s", "--payload", "p", "-f", "json").stdout)
    href = stored["Secret href"]
    try:
        payload = secret("get", href, "--payload", "-f", "value").stdout
        listed = json.loads(secret("list", "-f", "json").stdout)
        rows = barbican.rows(
            "SELECT secrets.name, projects.external_id FROM secrets JOIN projects"
            " ON secrets.project_id = projects.id WHERE NOT secrets.deleted"
        )
    finally:
        secret("delete", href)
    assert payload.strip() == "p"
    assert [one["Secret href"] for one in listed] == [href]
    # The project is the one of the user's own instance.
    show = ("openstack", "project", "show", "admin", "-f", "value", "-c", "id")
    assert rows == [("s", three.ssh(name, *show).stdout.strip())]


@pytest.mark.usefixtures("barbican")
@pytest.mark.parametrize(
    ("scope", "error"),
    [
        ((), "InstanceOne has no key-manager service: name another instance for it in the scope"),
        (("--scope", "dns=InstanceThree"), "unknown service type 'dns' in scope; known: compute, "),
        (("--scope", "key-manager=InstanceTwo"), "unknown instance 'InstanceTwo' in scope; known"),
    ],
)
def test_what_no_cloud_provides_is_named(
    three: RunningLab, scope: tuple[str, ...], error: str
) -> None:
    done = three.ssh(ONE, "openstack", "secret", "list", *scope, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith(error)
    assert len(done.stderr.splitlines()) == 1
