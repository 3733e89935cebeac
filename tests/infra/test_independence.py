"""Instances share nothing: every secret differs."""

from __future__ import annotations

import pytest
import testinfra

from tests.conftest import RunningLab

SECRETS = {
    "fernet key": "cat %s/etc/keystone/fernet-keys/0",
    "database account": "grep ^connection %s/etc/keystone/keystone.conf",
    "message queue account": "grep ^default_pass %s/etc/rabbitmq/rabbitmq.conf",
    "Erlang cookie": "cat %s/data/rabbitmq/.erlang.cookie",
    "password hashes": "mariadb --socket=%s/run/mariadb.sock -Ne"
    " 'SELECT password_hash FROM keystone.password'",
}


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_of_one_instance_is_one_of_another(lab: RunningLab, secret: str) -> None:
    found = []
    for name in lab.config.names:
        host = testinfra.get_host(f"ssh://{name}", ssh_config=str(lab.ssh_config))
        directory = lab.host(name).directory
        found.append(host.check_output(SECRETS[secret], str(directory)))
    assert all(found)
    assert len(set(found)) == len(lab.config.names)
