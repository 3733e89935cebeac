"""Commands with fabric, through an instance's real sshd."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.ssh import Remote
from tests.unit.lab.conftest import Sandbox


def remote(sandbox: Sandbox) -> Remote:
    sandbox.ok("up", "InstanceOne")
    return Remote(sandbox.state / "ssh_config", "InstanceOne")


def test_a_command_gets_its_words_input_and_variables_as_given(sandbox: Sandbox) -> None:
    one = remote(sandbox)
    assert one.run(["printf", "%s|", "a b", "$X", "it's"]).stdout == "a b|$X|it's|"
    assert one.run(["sh", "-c", "echo $X"], env={"X": "1 '2"}).stdout == "1 '2\n"
    text = "é\n" * 100_000
    assert one.run(["cat"], stdin=text).stdout == text
    assert one.run(["cat"]).stdout == ""
    assert one.run(["true"], stdin=text).ok


def test_lines_are_passed_on_as_they_arrive(sandbox: Sandbox) -> None:
    lines: list[str] = []
    remote(sandbox).run(["sh", "-c", "echo one; echo two >&2; printf three"], on_line=lines.append)
    assert sorted(lines) == ["one", "three", "two"]


def test_a_failing_command_is_a_one_line_error(sandbox: Sandbox) -> None:
    one = remote(sandbox)
    with pytest.raises(LabError) as caught:
        one.run(["sh", "-c", "echo no >&2; exit 3"])
    assert str(caught.value) == ("InstanceOne: sh -c 'echo no >&2; exit 3' ended with status 3: no")
    assert one.run(["sh", "-c", "exit 3"], check=False).status == 3


def test_a_file_is_written_whole_with_its_mode(sandbox: Sandbox) -> None:
    one = remote(sandbox)
    path = sandbox.state / "InstanceOne/secret"
    one.put("é\n", path, 0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("é\n", 0o600)
    one.put("new", path)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o644)
    with pytest.raises(LabError, match="InstanceOne: ssh failed"):
        one.put("x", "/nowhere/x")


def test_an_unreachable_host_is_a_one_line_error(sandbox: Sandbox) -> None:
    with pytest.raises(LabError, match="ssh_config is missing"):
        Remote(Path("/nowhere/ssh_config"), "InstanceOne").run(["true"])
    one = remote(sandbox)
    sandbox.ok("halt")
    with pytest.raises(LabError, match=r"InstanceOne: ssh failed: .*; run `\./setup-env\.py up`"):
        one.run(["true"])


def test_a_host_with_another_key_is_refused(sandbox: Sandbox) -> None:
    one = remote(sandbox)
    known = sandbox.state / "provider/known_hosts"
    first, second = known.read_text().splitlines()
    known.write_text(f"{first.split()[0]} {second.split(maxsplit=1)[1]}\n")
    with pytest.raises(LabError, match="InstanceOne: ssh failed"):
        one.run(["true"])
