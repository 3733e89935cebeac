"""Instances share nothing: every secret is another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

from tests.conftest import RunningLab


def _fernet_key(host: Host, directory: Path) -> str:
    return host.check_output("cat %s/etc/keystone/fernet-keys/0", str(directory))


def _database_password(host: Host, directory: Path) -> str:
    return host.check_output("grep ^connection %s/etc/keystone/keystone.conf", str(directory))


def _message_queue_password(host: Host, directory: Path) -> str:
    return host.check_output("grep ^default_pass %s/etc/rabbitmq/rabbitmq.conf", str(directory))


def _erlang_cookie(host: Host, directory: Path) -> str:
    return host.check_output("cat %s/data/rabbitmq/.erlang.cookie", str(directory))


def _administrator(host: Host, directory: Path) -> str:
    statement = "SELECT password_hash FROM keystone.password"
    socket = f"{directory}/run/mariadb.sock"
    return host.check_output("mariadb --socket=%s -Ne %s", socket, statement)


@pytest.mark.parametrize(
    "secret",
    [
        _fernet_key,
        _database_password,
        _message_queue_password,
        _erlang_cookie,
        _administrator,
    ],
)
def test_no_secret_of_one_instance_is_one_of_another(
    lab: RunningLab, secret: Callable[[Host, Path], str]
) -> None:
    found = []
    for name in lab.description.names:
        host = testinfra.get_host(f"ssh://{name}", ssh_config=str(lab.ssh_config))
        found.append(secret(host, Path(host.check_output("pwd")).parent))
    assert all(found)
    assert len(set(found)) == len(lab.description.names)
