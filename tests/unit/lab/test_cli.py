"""The commands, with real sshds, a real tmux and a stand-in stack."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.unit.lab.conftest import Sandbox, eventually

ROOT = Path(__file__).resolve().parents[3]


def is_listening(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, 2222)) == 0


def up_names(sandbox: Sandbox) -> list[str]:
    status = json.loads(sandbox.ok("status", "--json"))
    return [one["name"] for one in status["instances"] if one["up"]]


def test_a_lab_lives_from_nothing_to_nothing(sandbox: Sandbox) -> None:
    assert "down" in sandbox.ok("status")
    said = sandbox.ok("up")
    for name in ("InstanceOne", "InstanceTwo"):
        for step in ("host", "service"):
            assert any(line.split()[:3] == [name, step, "✔"] for line in said.splitlines())
    assert "./setup-env.py ssh InstanceOne -- openstack server create" in said
    assert up_names(sandbox) == ["InstanceOne", "InstanceTwo"]

    clouds = sandbox.state / "clouds.yaml"
    assert clouds.stat().st_mode & 0o777 == 0o600
    assert set(yaml.safe_load(clouds.read_text())["clouds"]) == {"InstanceOne", "InstanceTwo"}

    sandbox.ok("halt")
    assert sandbox.processes() == []
    assert sandbox.error("ssh", "InstanceOne") == (
        "error: InstanceOne is down: run ./setup-env.py up InstanceOne"
    )
    sandbox.ok("up")
    assert up_names(sandbox) == ["InstanceOne", "InstanceTwo"]

    sandbox.ok("destroy")
    assert sandbox.processes() == []
    assert not is_listening(str(sandbox_address(sandbox, 1)))
    assert [path.name for path in sandbox.root.iterdir()] == ["lab.yaml"]
    assert sandbox.tmux("ls") == ""
    sandbox.ok("destroy")
    sandbox.ok("halt")
    assert not sandbox.state.exists()


def sandbox_address(sandbox: Sandbox, number: int) -> str:
    return f"127.{sandbox.network}.{number}.1"


def test_the_dashboard_lives_as_long_as_the_lab(sandbox: Sandbox) -> None:
    down = "error: the lab is down: run ./setup-env.py up"
    assert sandbox.error("dashboard") == down
    assert not sandbox.state.exists()
    sandbox.ok("up")
    assert "dashboard" not in sandbox.ok("status")
    address = sandbox_address(sandbox, 1)
    with socket.create_server((address, 8880)):
        assert f"{address}:8880 is taken by" in sandbox.error("dashboard")
        assert "dashboard" not in sandbox.ok("status")

    url = f"http://{address}:8880/"
    assert url in sandbox.ok("dashboard")
    with urllib.request.urlopen(f"{url}auth/login/", timeout=60) as page:
        assert b"InstanceTwo" in page.read()
    running = {"state": "running", "url": url}
    assert json.loads(sandbox.ok("status", "--json"))["dashboard"] == running
    assert f"dashboard  {url}  running" in sandbox.ok("status")
    assert sandbox.error("logs", "InstanceOne", "dashboard").startswith("error: unknown service")
    [settings] = sandbox.state.glob("dashboard/local/local_settings.py")
    assert settings.stat().st_mode & 0o777 == 0o600

    sandbox.ok("halt", "InstanceTwo")
    assert json.loads(sandbox.ok("status", "--json"))["dashboard"] == running
    sandbox.ok("halt")
    assert sandbox.processes() == []
    assert sandbox.error("dashboard") == down

    sandbox.ok("up")
    sandbox.ok("dashboard")
    configuration = str(sandbox.state / "dashboard/supervisord.conf")
    [supervisor] = [p for p in sandbox.processes() if configuration in p.cmdline()]
    supervisor.kill()
    assert url in sandbox.ok("dashboard")
    sandbox.ok("destroy")
    assert sandbox.processes() == []
    assert [path.name for path in sandbox.root.iterdir()] == ["lab.yaml"]


def test_ssh_hands_arguments_streams_and_status_through_untouched(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceOne")
    odd = ["two  words", "$HOME", "it's", '{"image": "InstanceTwo"}', "", "*", "--", "-x", "é\n"]
    done = sandbox.run("ssh", "InstanceOne", "--", "printf", r"%s\0", *odd)
    assert done.stdout.decode().split("\0")[:-1] == odd
    done = sandbox.run("ssh", "InstanceOne", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    everything = bytes(range(256)) * 1000
    assert sandbox.run("ssh", "InstanceOne", "--", "cat", stdin=everything).stdout == everything
    assert sandbox.run("ssh", "InstanceOne", stdin=b"echo $((6 * 7))\n").stdout == b"42\n"


def test_an_instance_has_its_own_home_and_profile_and_nothing_of_the_callers(
    sandbox: Sandbox,
) -> None:
    sandbox.ok("up")
    listing = sandbox.ok("ssh", "InstanceTwo", "--", "env", "-0")
    environment = dict(line.split("=", 1) for line in listing.split("\0") if line)
    assert environment["HOME"] == str(sandbox.state / "InstanceTwo/home")
    assert environment["PWD"] == environment["HOME"]
    assert environment["OS_CLOUD"] == "InstanceTwo"
    assert environment["OPENSTACKOID_INSTANCE"] == "InstanceTwo"
    assert environment["OPENSTACKOID_LAB"] == str(sandbox.state)
    assert not [key for key in environment if key.startswith("PYTHON")]


def test_sshd_takes_the_labs_key_and_nothing_else(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceOne")
    config = str(sandbox.state / "ssh_config")
    refused = subprocess.run(
        [
            *("ssh", "-v", "-F", config, "-o", "IdentityFile=/dev/null", "-o", "BatchMode=yes"),
            *("-o", "PasswordAuthentication=yes", "InstanceOne", "true"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = "Authentications that can continue: publickey\n"
    assert wanted in refused.stderr.replace("\r", "")


def test_some_instances_can_be_brought_up_and_halted_by_name(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceTwo")
    assert up_names(sandbox) == ["InstanceTwo"]
    sandbox.ok("up")
    sandbox.ok("halt", "InstanceTwo")
    assert up_names(sandbox) == ["InstanceOne"]
    assert {process.name() for process in sandbox.processes()} >= {"sshd", "sleep"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "Nowhere"], "unknown instance 'Nowhere'; known: InstanceOne, InstanceTwo"),
        (["halt", "Nowhere"], "unknown instance 'Nowhere'; known: InstanceOne, InstanceTwo"),
        (["ssh", "Nowhere"], "unknown instance 'Nowhere'; known: InstanceOne, InstanceTwo"),
        (["logs", "Nowhere"], "unknown instance 'Nowhere'; known: InstanceOne, InstanceTwo"),
        (["up", "--provider", "vagrant", "-n", "3"], "list the instances in lab.yaml"),
        (["up", "--provider", "local", "--stack", "devstack"], "takes over a whole machine"),
        (["attach"], "the lab is down: run ./setup-env.py up"),
    ],
)
def test_an_impossible_command_gets_one_line_and_changes_nothing(
    sandbox: Sandbox, arguments: list[str], said: str
) -> None:
    line = sandbox.error(*arguments)
    assert line.startswith("error: ")
    assert said in line
    assert not sandbox.state.exists()


def test_a_lab_keeps_its_provider_until_it_is_destroyed(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceOne")
    line = sandbox.error("up", "--provider", "hosts")
    assert line == (
        "error: the lab has the provider local: run ./setup-env.py destroy before you choose "
        "the provider hosts"
    )
    assert up_names(sandbox) == ["InstanceOne"]


@pytest.mark.parametrize("arguments", [["up", "-n", "0"], ["up", "--stack", "x"], ["fly"], ["ssh"]])
def test_wrong_usage_ends_with_status_2(sandbox: Sandbox, arguments: list[str]) -> None:
    assert sandbox.error(*arguments, status=2).startswith("Error: ")
    assert not sandbox.state.exists()


def test_a_wrong_description_is_a_one_line_error(sandbox: Sandbox) -> None:
    sandbox.describe("instances: 3\n")
    assert sandbox.error("up").startswith("error: lab.yaml: instances: ")


def test_logs_show_each_service_of_an_instance(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceOne")
    assert sandbox.ok("logs", "InstanceOne", "sleep") == "started\n"
    assert "started" in sandbox.ok("logs", "InstanceOne")
    assert sandbox.error("logs", "InstanceOne", "nova") == (
        "error: unknown service 'nova'; known: sleep"
    )


def exported(sandbox: Sandbox, name: str = "help.tar.gz") -> dict[str, str]:
    """The texts in an archive about the lab, by their names."""
    target = sandbox.root / name
    assert f"Wrote {target}" in sandbox.ok("logs", "--export", str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    listed = subprocess.run(["tar", "-tf", target], capture_output=True, text=True, check=True)
    content = {}
    for line in listed.stdout.splitlines():
        shown = subprocess.run(["tar", "-xOf", target, line], capture_output=True, check=True)
        content[line.removeprefix("help/")] = shown.stdout.decode(errors="replace")
    target.unlink()
    return content


def test_logs_are_exported_from_a_lab_that_is_up_halted_or_gone(sandbox: Sandbox) -> None:
    assert "The lab" not in exported(sandbox)["README"]
    sandbox.ok("up")
    log = sandbox.state / "InstanceTwo/log"
    log.mkdir()
    (log / "sleep.log").write_text("said: gAAAAABqZ-0123456789abcdefgh\n")
    (log / "sleep.log.1").write_text("half a line\nearlier\n")
    for name in ("help.tar.gz", "help.tar.zst"):
        content = exported(sandbox, name)
        assert content["InstanceTwo/log/sleep.log"] == "earlier\nsaid: <removed:token>\n"
        assert "InstanceTwo/log/sleep.log.1" not in content
        assert [one["up"] for one in json.loads(content["status.json"])["instances"]] == [True] * 2
    for part in ("lab.yaml", "lab/clouds.yaml", "lab/log/InstanceOne.log", "doctor.json"):
        assert content[part]
    assert "openssh-server" in content["versions/this-machine.txt"]
    keys = [sandbox.state / "provider/key", *sandbox.state.glob("*/ssh/host_key")]
    secret = {line for key in keys for line in key.read_text().splitlines()[1:-1]}
    assert not [line for line in secret for text in content.values() if line in text]

    sandbox.ok("halt")
    content = exported(sandbox)
    assert [one["up"] for one in json.loads(content["status.json"])["instances"]] == [False] * 2
    assert content["InstanceTwo/log/sleep.log"]


def test_logs_are_exported_from_a_broken_lab(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    (sandbox.state / "InstanceOne/log").mkdir()
    (sandbox.state / "InstanceOne/log/sleep.log").write_bytes(b"\xff said\n")
    for process in sandbox.processes():
        process.suspend()
    sandbox.describe("instances: 3\n")
    content = exported(sandbox)
    assert content["lab.yaml"] == "instances: 3\n"
    assert "What could not be had" in content["README"]
    assert "instances: " in content["README"]
    assert "said" in content["InstanceOne/log/sleep.log"]
    assert content["lab/log/InstanceOne-sshd.log"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--export", "x.zip"], 1, "x.zip: give it a name that ends in .tar.zst or .tar.gz"),
        (["--export", "/nowhere/x.tar.gz"], 1, "/nowhere/x.tar.gz cannot be written: No such file"),
        (["InstanceOne", "--export", "x.tar.gz"], 2, "leave out NAME and -f"),
        ([], 2, "Missing argument 'NAME', or --export FILE."),
    ],
)
def test_logs_that_cannot_be_exported_are_a_one_line_error(
    sandbox: Sandbox, arguments: list[str], status: int, said: str
) -> None:
    assert said in sandbox.error("logs", *arguments, status=status)
    assert [path.name for path in sandbox.root.iterdir()] == ["lab.yaml"]


def test_nothing_is_exported_when_a_secret_cannot_be_known(sandbox: Sandbox) -> None:
    (sandbox.state / "secrets").mkdir(parents=True)
    (sandbox.state / "secrets/InstanceOne.json").write_text("{")
    target = sandbox.root / "help.tar.gz"
    assert "cannot be read" in sandbox.error("logs", "--export", str(target))
    assert not target.exists()


def test_an_sshd_that_is_killed_comes_back_by_itself(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceOne")
    for process in sandbox.processes():
        if process.name() == "sshd":
            process.kill()
    assert eventually(lambda: sandbox.run("ssh", "InstanceOne", "--", "true").returncode == 0)


def test_up_brings_everything_back_whatever_was_killed(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    for process in sandbox.processes():
        if process.name() in ("sshd", "python", "supervisord"):
            process.kill()
    sandbox.ok("up")
    assert up_names(sandbox) == ["InstanceOne", "InstanceTwo"]
    supervisors = [p for p in sandbox.processes() if "supervisor.supervisord" in p.cmdline()]
    assert len(supervisors) == 1


def test_up_recovers_when_only_its_supervisor_was_killed(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    for process in sandbox.processes():
        if "supervisor.supervisord" in process.cmdline():
            process.kill()
    sandbox.ok("up")
    assert up_names(sandbox) == ["InstanceOne", "InstanceTwo"]


def test_destroy_needs_neither_pid_files_nor_a_description(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    for path in (sandbox.state / "provider").iterdir():
        path.unlink()
    sandbox.describe("nonsense: [")
    sandbox.ok("destroy")
    assert sandbox.processes() == []
    assert not sandbox.state.exists()


@pytest.mark.parametrize("after", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_an_up_that_is_killed_at_any_moment_can_be_repeated(sandbox: Sandbox, after: float) -> None:
    first = subprocess.Popen(sandbox.argv("up"), env=sandbox.environment, stdout=subprocess.DEVNULL)
    time.sleep(after)
    first.kill()
    first.wait()
    sandbox.ok("up")
    assert up_names(sandbox) == ["InstanceOne", "InstanceTwo"]


def test_a_second_command_waits_for_the_first_and_names_it(sandbox: Sandbox) -> None:
    sandbox.state.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from lab.lifecycle import locked\n"
            f"with locked(pathlib.Path({str(sandbox.state)!r}), 'up'):\n"
            "    print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert holder.stdin
    assert holder.stdout
    holder.stdout.readline()
    second = subprocess.Popen(
        sandbox.argv("destroy"), env=sandbox.environment, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr
    assert second.stderr.readline() == f"waiting for `up` (process {holder.pid}) …\n"
    assert second.poll() is None
    holder.stdin.close()
    assert holder.wait() == 0
    assert second.wait() == 0
    assert not sandbox.state.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_status_130_and_no_traceback(
    sandbox: Sandbox, number: signal.Signals
) -> None:
    running = subprocess.Popen(
        sandbox.argv("up"),
        env=sandbox.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    running.stdout.readline()
    running.send_signal(number)
    _, said = running.communicate()
    assert (running.returncode, said.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in said


def test_a_lab_is_closed_to_other_users(sandbox: Sandbox) -> None:
    sandbox.ok("up", "--no-attach")
    assert sandbox.state.stat().st_mode & 0o077 == 0
    assert sandbox.ok("ssh", "InstanceOne", "--", "echo", "in") == "in\n"


def test_a_taken_port_is_named_with_its_program(sandbox: Sandbox) -> None:
    with socket.socket() as taker:
        # Connections of an earlier test may linger on this address.
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind((sandbox_address(sandbox, 1), 2222))
        taker.listen()
        line = sandbox.error("up")
    assert f"{sandbox_address(sandbox, 1)}:2222 is taken by" in line
    assert f"(process {os.getpid()})" in line


def test_an_address_that_is_not_loopback_is_refused(sandbox: Sandbox) -> None:
    sandbox.describe("instances: [{name: A, address: 10.1.2.3}]\n")
    assert "10.1.2.3 is not a loopback address" in sandbox.error("up")


def test_processes_without_the_mark_are_left_alone(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceOne")
    bystander = subprocess.Popen(["sleep", "600"], cwd=sandbox.state)
    try:
        sandbox.ok("destroy")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_destroy_works_from_inside_the_lab(sandbox: Sandbox) -> None:
    sandbox.ok("up")
    command = " ".join(sandbox.argv("destroy"))
    pane = "openstackoid:0.0"
    assert eventually(lambda: "stack@InstanceOne:~$" in sandbox.tmux("capture-pane", "-pt", pane))
    sandbox.tmux("send-keys", "-t", pane, f"OPENSTACKOID_TMUX_SOCKET={sandbox.socket} {command}")
    sandbox.tmux("send-keys", "-t", pane, "Enter")
    assert eventually(lambda: not sandbox.state.exists())
    assert eventually(lambda: sandbox.processes() == [])
    assert sandbox.tmux("ls") == ""


def test_doctor_names_what_is_missing_and_what_is_there(sandbox: Sandbox) -> None:
    said = sandbox.ok("doctor")
    assert "✔ package openssh-server" in said
    assert "provider vagrant\n" in said
    assert "a hypervisor for Vagrant" in said
    assert "stack devstack\n" in said
    assert "hypervisor libvirt\n" in said
    assert re.search("[✔✘] real guests on this machine", said)
    assert re.search("[✔✘] package qemu-system-x86", said)


def test_doctor_prints_as_json_what_it_prints_as_text(sandbox: Sandbox) -> None:
    sections = json.loads(sandbox.ok("doctor", "--json"))["sections"]
    said = sandbox.ok("doctor").splitlines()
    assert [one["title"] for one in sections] == [line for line in said if line[0] != " "]
    findings = [finding for one in sections for finding in one["findings"]]
    assert all(one.keys() == {"what", "present", "mend"} for one in findings)
    present = {one["what"] for one in findings if one["present"]}
    assert present == {line.removeprefix("  ✔ ") for line in said if "✔" in line}
    lacking = {f"  ✘ {one['what']}: {one['mend']}" for one in findings if not one["present"]}
    # The free memory is another number each time.
    assert {line[:30] for line in lacking} == {line[:30] for line in said if "✘" in line}


def test_status_prints_json_of_the_described_form(sandbox: Sandbox) -> None:
    """``status --help`` describes it."""
    sandbox.ok("up", "InstanceOne")
    status = json.loads(sandbox.ok("status", "--json"))
    one, two = status.pop("instances")
    url = f"http://{sandbox_address(sandbox, 1)}:8880/"
    assert status == {
        "provider": "local",
        "stack": "wheels",
        "dashboard": {"state": None, "url": url},
    }
    assert one == {
        "name": "InstanceOne",
        "address": sandbox_address(sandbox, 1),
        "up": True,
        "services": [{"name": "sleep", "state": "running", "detail": ""}],
        "peers": {"InstanceTwo": "UP"},
    }
    assert (two["up"], two["services"], two["peers"]) == (False, [], {})


def test_doctor_says_of_each_provider_whether_it_can_have_the_lab(sandbox: Sandbox) -> None:
    sandbox.describe("instances: [{name: A, address: 10.1.2.3}]\n")
    said = sandbox.ok("doctor")
    assert "✘ lab.yaml: lab.yaml: instances: A: 10.1.2.3 is not a loopback address" in said
    assert "provider hosts\n" in said
    sandbox.describe("instances: []\n")
    assert "error: lab.yaml: instances" in sandbox.error("doctor")


@pytest.mark.parametrize("command", ["status", "status --json", "up", "doctor", "--help"])
def test_a_full_standard_output_is_a_one_line_error(sandbox: Sandbox, command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            sandbox.argv(*command.split()),
            env=sandbox.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr == (
        "error: cannot write to standard output or into .lab: No space left on device\n"
    )
    assert done.returncode == 1


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_locales_other_than_utf_8_work(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, locale: str
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    # Python's encoding in a Latin-1 locale; few machines have such a locale.
    if locale.endswith("8859-1"):
        monkeypatch.setenv("PYTHONIOENCODING", "iso-8859-1")
    monkeypatch.delenv("TMUX", raising=False)
    mark = r"\N{HEAVY CHECK MARK}" if locale.endswith("8859-1") else "✔"
    said = sandbox.ok("up")
    assert any(line.split()[:2] == ["InstanceOne", "host"] for line in said.splitlines())
    assert mark in said
    sandbox.ok("up")
    panes = sandbox.tmux("list-panes", "-t", "openstackoid", "-F", "#{@instance}")
    assert panes.split() == ["InstanceOne", "InstanceTwo"]
    sandbox.ok("destroy")


def test_an_up_that_fails_shows_the_step_and_its_log(sandbox: Sandbox) -> None:
    sandbox.ok("up", "InstanceOne")
    (sandbox.state / "InstanceOne/home/.profile.new").mkdir()
    done = sandbox.run("up")
    said = done.stdout.decode()
    assert done.returncode == 1
    assert any(line.split()[:3] == ["InstanceOne", "service", "✘"] for line in said.splitlines())
    assert f"the whole log: {sandbox.state}/log/InstanceOne.log" in said
    assert "Traceback" not in said
    assert "Traceback" in (sandbox.state / "log/InstanceOne.log").read_text()
