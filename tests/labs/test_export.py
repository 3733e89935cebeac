"""The archive for somebody who helps, of a lab that has every kind of secret."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from lab.config import Lab
from tests.conftest import RunningLab
from tests.integration.wire import login
from tests.labs.test_sealing import ONE, SCOPE, TWO, ask, recorded

#: Shorter words are no secrets.
LONG = 16


def keys(lab: Lab) -> dict[str, set[str]]:
    """Every password and key of the *lab*, by the path of a file that has it.

    The files are found by what they are, whatever the lab itself takes for a secret.
    """
    found: dict[str, set[str]] = {}
    for path in lab.state.rglob("*"):
        if not path.is_file() or {"venv", "mariadb", ".cache", "database"} & set(path.parts):
            continue
        text = path.read_text(errors="replace")
        words: list[str] = []
        if path.parent.name == "secrets":
            words = list(json.loads(text).values())
        elif path.parent.name.endswith("-keys") or path.name.endswith((".keys", ".cookie")):
            words = text.split()
        elif "PRIVATE KEY-----" in text:
            private = re.findall(
                r"-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)-----END", text, re.DOTALL
            )
            words = "".join(private).split()
        elif path.name == "clouds.yaml":
            words = re.findall(r"password: (\S+)", text)
        if words:
            found[str(path.relative_to(lab.state))] = {one for one in words if len(one) >= LONG}
    return found


def unpacked(lab: RunningLab, directory: Path) -> dict[str, str]:
    """The texts of the archive that the *lab* exports into *directory*."""
    target = directory / "help.tar.zst"
    lab.setup_env("logs", "--export", str(target))
    subprocess.run(["tar", "-C", directory, "-xf", target], check=True)
    top = directory / "help"
    files = [path for path in top.rglob("*") if path.is_file()]
    return {str(path.relative_to(top)): path.read_text(errors="replace") for path in files}


@pytest.fixture(scope="module")
def tokens(three: RunningLab) -> dict[str, str]:
    """A plain token, a tagged and a sealed one, that were used, and are in the proxies' logs."""
    plain, tagged = login(three, ONE, "demo"), login(three, ONE, "demo", SCOPE)
    with recorded(three, TWO) as peer:
        deadline = time.monotonic() + 20
        while not peer.requests:
            assert time.monotonic() < deadline
            ask(three, ("GET", "/compute/v2.1/servers"), {"X-Auth-Token": tagged}, None)
    sealed = peer.requests[0].headers["x-auth-token"].partition("!")[0]
    found = {"plain": plain, "tagged": tagged.partition("!")[0], "sealed": sealed}
    for token in (plain, tagged, sealed):
        # In the path, where a client that is wrong may put it: the proxy logs it.
        path = token.replace("{", "%7B").replace("}", "%7D").replace('"', "%22")
        ask(three, ("GET", f"/identity/v3/{path}"), {"X-Auth-Token": token}, None)
    return found


def test_the_archive_has_no_secret(
    three: RunningLab, tokens: dict[str, str], tmp_path: Path
) -> None:
    known = keys(three.config)
    state = three.config.state
    # The test finds what there is: each instance has passwords, a cookie and keys of five kinds.
    for name in three.config.names:
        passwords = json.loads((state / "secrets" / f"{name}.json").read_text())
        assert len(passwords) >= 9
        assert passwords.keys() >= {"admin", "demo", "database", "messaging", "erlang", "nova"}
        assert set(passwords.values()) == known[f"secrets/{name}.json"]
        for file in (
            "etc/keystone/fernet-keys/0",
            "etc/keystone/credential-keys/0",
            "etc/proxy/sealing.keys",
            "etc/certificate.pem",
            "ssh/host_key",
        ):
            assert known[f"{name}/{file}"]
    assert known["provider/key"]
    assert known["secrets/tls/ca.key"]
    # Otherwise, there would be nothing to remove from logs.
    log = (state / ONE / "log/haproxy.log").read_text()
    assert [kind for kind, token in tokens.items() if token not in log] == []
    assert tokens["sealed"].startswith("oid1.")

    content = unpacked(three, tmp_path)
    secrets = {word: path for path, words in known.items() for word in words}
    for kind, token in tokens.items():
        # HAProxy cuts long lines: a part of a token must not be there either.
        secrets |= {token: kind, token[:LONG]: kind, token[LONG : 2 * LONG]: kind}
    leaks = [
        (secrets[secret], name)
        for secret in secrets
        for name, text in content.items()
        if secret in text
    ]
    assert leaks == []
    assert [name for name, text in content.items() if "PRIVATE KEY" in text] == []


def test_the_archive_has_what_a_helper_needs(
    three: RunningLab, tokens: dict[str, str], tmp_path: Path
) -> None:
    content = unpacked(three, tmp_path)
    for name in three.config.names:
        for service in ("haproxy", "keystone", "nova-api", "mariadb", "rabbitmq"):
            assert f"{name}/log/{service}.log" in content
        assert "bind " in content[f"{name}/etc/proxy/haproxy.cfg"]
        assert f"<removed:{name}/nova>" in content[f"{name}/etc/nova/nova.conf"]
        assert f"openstack:<removed:{name}/messaging>@" in content[f"{name}/etc/nova/nova.conf"]
        assert "BEGIN CERTIFICATE" in content[f"{name}/etc/certificate.pem"]
    # The route of a request, and the scope in its tag, without the token.
    assert "peer_InstanceTwo" in content[f"{ONE}/log/haproxy.log"]
    assert "/identity/v3/<removed:token>!SCOPE!" in content[f"{ONE}/log/haproxy.log"]
    versions = content["versions/this-machine.txt"]
    for package in ("keystone", "nova", "neutron", "haproxy", "mariadb-server"):
        assert re.search(rf"^{package} \S*\d", versions, re.MULTILINE)
    status = json.loads(content["status.json"])
    assert [one["up"] for one in status["instances"]] == [True] * 3
    assert json.loads(content["doctor.json"])["sections"]
    assert "sealed: true" in content["lab.yaml"]
    assert re.match(r"[0-9a-f]{40} ", content["git.txt"])
    # The clone's lab.yaml is not what was committed.
    assert "+sealed: true" in content["git.txt"]
    assert "could not be had" not in content["README"]
