"""What is taken out of texts before they leave the lab."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.redaction import Redaction, secrets

FERNET = "gAAAAABqZ-" + "aB3_" * 40
TAG = '!SCOPE!{"compute":"InstanceOne","image":"InstanceTwo"}'
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49
AwEHBG0wawIBAQQg
-----END PRIVATE KEY-----
"""


def test_a_known_secret_is_replaced_by_its_name_and_a_longer_one_first() -> None:
    clean = Redaction({"abcdef": "InstanceOne/demo", "abcdef0123": "InstanceOne/admin"})
    assert clean("rabbit://openstack:abcdef0123@127.0.1.1/ abcdef") == (
        "rabbit://openstack:<removed:InstanceOne/admin>@127.0.1.1/ <removed:InstanceOne/demo>"
    )


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"GET /identity/v3/{FERNET} HTTP/1.1", FERNET),
        (f"GET /x/{FERNET}%3D%3D HTTP/1.1", FERNET),
        (f"x {FERNET}{TAG}", FERNET),
        (f"GET /x/{FERNET}%21SCOPE%21%7B", FERNET),
        (f"/{FERNET[:40]}", FERNET[:40]),
        ("X-Auth-Token: 0123456789abcdef0123", "0123456789abcdef0123"),
        ("{'X-Subject-Token': 'abcdefghijk-l'}", "abcdefghijk-l"),
        ("x-auth-token=abcdefghijk", "abcdefghijk"),
        ("0123456789abcdef0123" + TAG, "0123456789abcdef0123"),
        ("oid1.abcDEF_-0123456789" + TAG, "abcDEF_-0123456789"),
        ("ws://127.0.1.1:6083/?token=5ff9-11", "5ff9-11"),
        ("url: http://me:hunter2@proxy.example:3128", "hunter2"),
        ('{"password": "hunter2", "name": "me"}', "hunter2"),
        ('{"adminPass": "hunter2"}', "hunter2"),
        ("    ADMIN_PASSWORD: hunter2", "hunter2"),
        (f"x\n{KEY}y", "MIGHAgEAMBMGByqGSM49"),
        (json.dumps({"certificate": KEY}), "AwEHBG0wawIBAQQg"),
    ],
)
def test_what_has_the_form_of_a_secret_is_removed(text: str, secret: str) -> None:
    cleaned = Redaction({})(text)
    assert secret in text
    assert secret not in cleaned
    assert "<removed:" in cleaned


def test_a_tag_stays_when_its_token_goes() -> None:
    assert Redaction({})(f"X-Auth-Token: {FERNET}{TAG}") == f"X-Auth-Token: <removed:token>{TAG}"


@pytest.mark.parametrize(
    "text",
    [
        "token_cache: 30",
        "http-request set-header X-Auth-Token %[var(txn.token)]",
        'mark = "!SCOPE!"',
        "password_hash_rounds = 4",
        "sealed: false",
        'GET /image/v2/images HTTP/1.1" peer_InstanceTwo image {"image":"InstanceTwo"}',
        "http://127.0.1.1:8888/identity/v3",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert Redaction({})(text) == text


def test_long_lines_take_no_longer_than_short_ones() -> None:
    text = "x" * 2_000_000 + " " + "gAAA" * 500_000 + " A_" * 100_000 + "://a:" * 100_000
    began = time.monotonic()
    Redaction({})(text)
    assert time.monotonic() - began < 10


def test_the_secrets_of_a_lab_are_in_its_files(tmp_path: Path) -> None:
    instance = tmp_path / "InstanceOne"
    texts = {
        tmp_path / "secrets/InstanceOne.json": '{"admin": "0123456789abcdef"}',
        tmp_path / "secrets/tls/InstanceOne.crt": KEY + "-----BEGIN CERTIFICATE-----\nMIIB\n",
        tmp_path / "provider/key": KEY,
        instance / "etc/keystone/fernet-keys/0": "a_fernet_key_of_32_bytes=",
        instance / "etc/proxy/sealing.keys": "the_newer_sealing_key\nthe_older_sealing_key\n",
        instance / "data/rabbitmq/.erlang.cookie": "COOKIECOOKIECOOKIE",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = secrets(tmp_path, {"InstanceOne": instance})
    assert found["0123456789abcdef"] == "InstanceOne/admin"
    assert found["a_fernet_key_of_32_bytes="] == "InstanceOne/etc/keystone/fernet-keys/0"
    assert found.keys() >= {
        "MIGHAgEAMBMGByqGSM49",
        "the_newer_sealing_key",
        "the_older_sealing_key",
        "COOKIECOOKIECOOKIE",
    }


def test_secrets_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/InstanceOne.json").write_text("{")
    with pytest.raises(LabError, match=r"InstanceOne\.json cannot be read"):
        secrets(tmp_path, {})
