"""The files and commands of the stack ``devstack`` on a machine."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from lab.config import Lab, load
from lab.errors import LabError
from lab.passwords import passwords
from lab.providers.base import Host
from lab.ssh import Remote, Result
from lab.stacks import devstack
from lab.stacks.devstack import ACCOUNTS, DevStack
from lab.steps import Steps
from openstackoid.proxy.config import FILES

from .conftest import DevStack as Plugin

STACKED = """\
+ source .localrc.auto
++ ADMIN_PASSWORD={password}
2026-11-24 06:43:23.089 | stack.sh log /opt/stack/logs/stack.sh.log
2026-11-24 06:43:24.000 | Starting Keystone
2026-11-24 06:43:25.000 | Starting Nova
2026-11-24 06:43:26.000 | stack.sh completed in 837 seconds.
The password: {password}
"""
UNIT = "devstack@openstackoid-proxy.service loaded active running"


@dataclass
class Machine:
    """A host that records what is done to it, and gives the *answers*."""

    files: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    #: The permissions of the files.
    modes: dict[str, int] = field(default_factory=dict)
    #: The standard input of each command.
    inputs: dict[str, str] = field(default_factory=dict)
    #: The output of each command, by its beginning; None if it fails.
    answers: dict[str, str | None] = field(default_factory=dict)

    def run(
        self,
        argv: Sequence[str],
        stdin: str | None = None,
        on_line: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Result:
        line = " ".join(argv)
        self.inputs[line] = stdin or ""
        self.calls.append(line)
        if argv[0] == "cat":
            text = self.files.get(argv[1])
        elif argv[0] == "rm":
            text = ""
            self.files.pop(argv[-1], None)
        else:
            known = [answer for start, answer in self.answers.items() if line.startswith(start)]
            text = known[0] if known else ""
        if text and argv[-1] == "./stack.sh":
            self.answers["systemctl list-units"] = UNIT
        for said in (text or "").splitlines() if on_line else []:
            cast(Any, on_line)(said)
        if check and text is None:
            raise LabError(f"{line} fails")
        return Result(0 if text is not None else 1, text or "", "")

    def put(self, text: str, path: Path | str, mode: int = 0o644) -> None:
        self.files[str(path)] = text
        self.modes[str(path)] = mode

    def called(self, command: str) -> list[str]:
        return [line for line in self.calls if line.startswith(command)]


@pytest.fixture
def root() -> Iterator[Path]:
    """A lab's directory; the name of pytest's own is too long."""
    with tempfile.TemporaryDirectory(prefix="oid-") as name:
        yield Path(name)


@pytest.fixture
def machine() -> Machine:
    proxy = {"name": "InstanceOne", "peers": [], "issuers": []}
    return Machine(
        files={"/etc/openstackoid/proxy.json": json.dumps(proxy)},
        answers={
            "sudo systemd-run": STACKED,
            "find /etc/openstackoid": "1234  /etc/openstackoid/haproxy.cfg\n",
            "openstack compute service list": "[]",
        },
    )


def describe(
    root: Path,
    sections: Mapping[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401 - any setting of local.conf
) -> Lab:
    text = {
        "provider": "vagrant",
        "stack": "devstack",
        "vagrant": {"box": "box", "cpus": 2, "memory": 9000},
        "instances": [{"name": "InstanceOne"}, {"name": "InstanceTwo"}],
        "addresses": {"vagrant": "192.168.56.1%d"},
        "devstack": {"settings": settings},
        **(sections or {}),
    }
    (root / "lab.yaml").write_text(json.dumps(text))
    return load(root)


@dataclass
class Up:
    """``up`` of one instance on a *machine*."""

    root: Path
    machine: Machine
    shown: io.StringIO = field(default_factory=io.StringIO)

    def __call__(self, lab: Lab) -> str:
        home = Path("/opt/stack")
        host = Host(
            name="InstanceOne",
            address="192.168.56.11",
            directory=home / "instance",
            shared=home / "shared",
            home=home,
            source=home / "source",
            python="/usr/bin/python3",
            uv="uv",
        )
        with Steps(self.root / "log", Console(file=self.shown, width=200)) as steps:
            DevStack(lab, lambda _: cast(Remote, self.machine)).up([host], steps)
        return self.shown.getvalue()


@pytest.fixture
def up(root: Path, machine: Machine) -> Up:
    return Up(root, machine)


def scripts(machine: Machine) -> list[str]:
    """The scripts of DevStack that were run."""
    return [call.split()[-1] for call in machine.called("sudo systemd-run")]


def test_the_output_of_stack_sh_becomes_steps(root: Path, up: Up) -> None:
    said = up(describe(root))
    titles = [line.split("✔")[0].split(maxsplit=1)[1].strip() for line in said.splitlines()]
    assert titles[1:4] == ["stack.sh", "Starting Keystone", "Starting Nova"]


def test_a_second_up_does_not_stack_unless_local_conf_changes(root: Path, up: Up) -> None:
    up(describe(root))
    up(describe(root))
    assert scripts(up.machine) == ["./stack.sh"]
    up(describe(root, API_WORKERS=1))
    assert scripts(up.machine) == ["./stack.sh", "./unstack.sh", "./stack.sh"]


def test_up_stacks_again_after_a_manual_unstack(root: Path, up: Up) -> None:
    up(describe(root))
    del up.machine.answers["systemctl list-units"]
    up(describe(root))
    assert scripts(up.machine) == ["./stack.sh", "./stack.sh"]


def test_no_password_gets_into_our_log(root: Path, up: Up) -> None:
    lab = describe(root)
    password = passwords(lab, "InstanceOne", ACCOUNTS)["admin"]
    up.machine.answers["sudo systemd-run"] = STACKED.format(password=password)
    up(lab)
    log = (root / "log" / "InstanceOne.log").read_text()
    assert "The password: …" in log
    assert password not in log


def test_other_instances_log_in_as_a_user_who_is_created_there(root: Path, up: Up) -> None:
    lab = describe(root)
    up(lab)
    [wanted] = [text for line, text in up.machine.inputs.items() if "lab.resources" in line]
    made = json.loads(wanted)["member"]
    known = DevStack(lab, lambda _: cast(Remote, None)).clouds("InstanceTwo")["clouds"][
        "InstanceOne"
    ]["auth"]
    assert made == {"name": known["username"], "password": known["password"]}
    assert made["password"] != passwords(lab, "InstanceOne", ACCOUNTS)["admin"]


def test_a_failed_stack_sh_says_where_and_is_run_again(root: Path, up: Up) -> None:
    up.machine.answers["sudo systemd-run"] = None
    failure = r"status 1 at “stack.sh”: see ./setup-env.py logs InstanceOne"
    with pytest.raises(LabError, match=failure):
        up(describe(root))
    up.machine.answers["sudo systemd-run"] = STACKED
    up(describe(root))
    assert scripts(up.machine) == ["./stack.sh", "./stack.sh"]


def test_a_proxy_is_reloaded_for_new_peers_and_new_files_only(root: Path, up: Up) -> None:
    reload = "sudo systemctl reload devstack@openstackoid-proxy"
    lab = describe(root)
    up(lab)
    assert up.machine.called(reload) == []
    up(lab)
    assert json.loads(up.machine.files["/etc/openstackoid/proxy.json"])["peers"] == [
        {"name": "InstanceTwo", "address": "192.168.56.12:8888"}
    ]
    assert len(up.machine.called(reload)) == 1
    up(lab)
    assert len(up.machine.called(reload)) == 1
    up.machine.answers["find /etc/openstackoid"] = "5678  /etc/openstackoid/haproxy.cfg\n"
    up(lab)
    assert len(up.machine.called(reload)) == 2
    [search] = set(up.machine.called("find /etc/openstackoid"))
    assert [name for name in FILES if f"-name {name}" not in search] == []


@pytest.mark.parametrize(("driver", "is_renamed"), [("fake", True), ("libvirt", False)])
def test_ovn_knows_a_fake_compute_by_its_name(
    root: Path, up: Up, driver: str, is_renamed: bool
) -> None:
    up(describe(root, VIRT_DRIVER=driver))
    script = up.machine.files.get("/opt/stack/devstack/local.sh", "")
    assert ('external-ids:hostname="$(hostname)1"' in script) is is_renamed


def test_up_waits_for_workers_that_have_not_reported_since_they_started(
    root: Path, up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = describe(root)
    up(lab)
    row = {"Binary": "nova-compute", "Updated At": "2026-11-24T07:20:00.000000"}
    listing = "openstack compute service list"
    up.machine.answers[listing] = json.dumps([row])
    up.machine.answers["systemctl show"] = "@1795505000\n"

    def later(_: float) -> None:
        up.machine.answers[listing] = json.dumps([{**row, "Updated At": "2026-11-24T07:24:00"}])

    monkeypatch.setattr(time, "sleep", later)
    before = len(up.machine.called(listing))
    up(lab)
    assert len(up.machine.called(listing)) == before + 2
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(devstack, "_PATIENCE", 0)
    up.machine.answers[listing] = json.dumps([row])
    with pytest.raises(LabError, match="nova-compute did not report for 0 s"):
        up(lab)


PROTECTED = {
    "sealed": True,
    "tls": True,
    "trust": {"InstanceOne": {"InstanceTwo": {"services": ["image"], "rate": 5}}},
}
PEM = [f"/opt/stack/devstack/openstackoid-{name}.pem" for name in ("certificate", "ca")]
POLICY = {"issuer": "InstanceTwo", "services": ["image"], "rate": 5, "admin": False}


def plugin_settings(machine: Machine) -> list[str]:
    """The plugin's lines of local.conf, besides its port and cache."""
    lines = machine.files["/opt/stack/devstack/local.conf"].splitlines()
    wanted = ("OPENSTACKOID_PORT", "OPENSTACKOID_TOKEN")
    return [
        line for line in lines if line.startswith("OPENSTACKOID_") and not line.startswith(wanted)
    ]


def test_local_conf_asks_for_no_protection_unless_lab_yaml_does(root: Path, up: Up) -> None:
    up(describe(root))
    assert plugin_settings(up.machine) == [
        'OPENSTACKOID_PEERS="InstanceTwo=192.168.56.12:8888"',
        'OPENSTACKOID_ISSUERS="InstanceTwo"',
        "OPENSTACKOID_POLICIES='[]'",
        "OPENSTACKOID_SEALED=False",
    ]
    assert [path for path in PEM if path in up.machine.files] == []


def test_local_conf_asks_for_the_protections_of_lab_yaml(root: Path, up: Up) -> None:
    up(describe(root, PROTECTED))
    assert plugin_settings(up.machine) == [
        'OPENSTACKOID_PEERS="InstanceTwo=192.168.56.12:8889"',
        'OPENSTACKOID_ISSUERS="InstanceTwo"',
        f"OPENSTACKOID_POLICIES='{json.dumps([POLICY])}'",
        "OPENSTACKOID_SEALED=True",
        "OPENSTACKOID_TLS_BIND=192.168.56.11:8889",
        f"OPENSTACKOID_TLS_CERTIFICATE={PEM[0]}",
        f"OPENSTACKOID_TLS_CA={PEM[1]}",
    ]
    assert [up.machine.modes[path] for path in PEM] == [0o600, 0o600]


def test_the_plugin_takes_what_the_lab_writes(root: Path, up: Up, devstack: Plugin) -> None:
    up(describe(root, PROTECTED))
    for path in PEM:
        (devstack.root / Path(path).name).write_text(up.machine.files[path])
    settings = (shlex.split(line) for line in plugin_settings(up.machine))
    devstack.local_conf = {
        name: value.replace("/opt/stack/devstack", str(devstack.root))
        for name, _, value in (word.partition("=") for (word,) in settings)
    }
    devstack.stack("pre-install", "install")
    described = devstack.description()
    up(describe(root, PROTECTED))
    updated = json.loads(up.machine.files["/etc/openstackoid/proxy.json"])
    assert [described[key] for key in ("peers", "issuers", "policies")] == [
        updated[key] for key in ("peers", "issuers", "policies")
    ]
    assert described["tls"].keys() == updated["tls"].keys()


def test_protections_come_and_go_without_stack_sh(root: Path, up: Up) -> None:
    reload = "sudo systemctl reload devstack@openstackoid-proxy"
    up(describe(root))
    up(describe(root, PROTECTED))
    described = json.loads(up.machine.files["/etc/openstackoid/proxy.json"])
    assert described["peers"] == [
        {"name": "InstanceTwo", "address": "192.168.56.12:8889", "sealed": True, "tls": True}
    ]
    assert described["policies"] == [POLICY]
    assert described["tls"] == {
        "bind": "192.168.56.11:8889",
        "certificate": PEM[0],
        "ca": PEM[1],
    }
    assert [up.machine.modes[path] for path in PEM] == [0o600, 0o600]
    assert len(up.machine.called(reload)) == 1
    up(describe(root, PROTECTED))
    assert len(up.machine.called(reload)) == 1
    # Another authority, as after `destroy`.
    shutil.rmtree(root / ".lab" / "secrets" / "tls")
    up(describe(root, PROTECTED))
    assert len(up.machine.called(reload)) == 2
    up(describe(root))
    described = json.loads(up.machine.files["/etc/openstackoid/proxy.json"])
    assert described["peers"] == [{"name": "InstanceTwo", "address": "192.168.56.12:8888"}]
    assert (described["policies"], described["tls"]) == ([], None)
    assert scripts(up.machine) == ["./stack.sh"]
