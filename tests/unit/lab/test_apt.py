"""Debian packages: what is missing, and what an installation must not start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lab import apt

ROOT = Path(__file__).resolve().parents[3]


def test_missing_packages_are_named_once_and_in_order() -> None:
    asked = ["no-such-b", "dpkg", "no-such-a", "no-such-b"]
    assert apt.missing(asked) == ["no-such-a", "no-such-b"]


def test_nothing_is_said_if_nothing_is_missing() -> None:
    said: list[str] = []
    apt.ensure(["dpkg"], said.append)
    assert said == []


def test_an_installation_waits_for_another_one() -> None:
    entered = threading.Event()

    def install() -> None:
        with apt._alone():
            entered.set()

    second = threading.Thread(target=install)
    with apt._alone():
        second.start()
        assert not entered.wait(0.5)
    second.join(10)
    assert entered.is_set()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes a user without rights")
@pytest.mark.parametrize(
    "call", ["check(['no-such-a', 'dpkg'])", "ensure(['no-such-a', 'dpkg'], print)"]
)
def test_a_user_without_rights_gets_the_command_to_type(call: str) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from lab import apt\n"
        "from lab.errors import LabError\n"
        "os.environ['PATH'] = '/usr/bin:/bin'; apt.shutil.which = lambda name: None\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try:\n    apt.{call}\n"
        "except LabError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "Debian packages are missing: sudo apt-get install --no-install-recommends no-such-a\n"
    )


def policy(tmp_path: Path, pid: int) -> subprocess.CompletedProcess[bytes]:
    saved = tmp_path / "saved"
    saved.write_text('#!/bin/sh\n[ "$1" = ssh ] && exit 42\nexit 43\n')
    saved.chmod(0o755)
    script = tmp_path / "policy-rc.d"
    mark = apt._POLICY_MARK
    script.write_text(apt._POLICY_TEXT.format(mark=mark, pid=pid, saved=saved))
    script.chmod(0o755)
    return subprocess.run([str(script), "ssh", "start"], capture_output=True, check=False)


def test_no_service_may_start_while_we_install(tmp_path: Path) -> None:
    assert policy(tmp_path, os.getpid()).returncode == 101


def test_the_machines_own_policy_decides_again_after_we_were_killed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert policy(tmp_path, gone.pid).returncode == 42


def test_units_and_init_scripts_of_a_package_are_found() -> None:
    found = apt._units(["openssh-server"])
    assert "/etc/init.d/ssh" in found
    assert any(path.endswith("/systemd/system/ssh.service") for path in found)
    assert apt._units([]) == []
