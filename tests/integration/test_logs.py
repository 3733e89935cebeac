"""What a lab that runs for weeks writes."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import export, logs, processes
from lab.lifecycle import Lifecycle
from lab.wheels.services import program_names
from lab.wheels.spec import PROXY_PORT
from tests.conftest import RunningLab
from tests.integration.conftest import Shell

#: supervisord looks at a log's size after each read from a pipe (supervisor/dispatchers.py).
ONE_READ = 2 << 16


def requests(lab: RunningLab, paths: Iterator[str]) -> None:
    """Send a request for each of *paths* to InstanceOne's proxy, which refuses and logs it."""
    address = str(lab.config.instance("InstanceOne").address)
    connection = http.client.HTTPConnection(address, PROXY_PORT, timeout=20)
    for path in paths:
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()


@contextlib.contextmanager
def followed(lab: RunningLab, output: Path) -> Iterator[None]:
    """What ``logs InstanceOne haproxy -f`` prints goes into the file *output*."""
    command = [str(lab.config.root / "setup-env.py"), "logs", "InstanceOne", "haproxy", "-f"]
    with (
        output.open("wb") as file,
        subprocess.Popen(
            command, env=lab.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        ) as process,
    ):
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def appears(text: str, path: Path) -> bool:
    deadline = time.monotonic() + 20
    while text not in path.read_text(errors="replace"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_program_that_writes_much_stays_within_the_bound_and_can_be_read(
    lab: RunningLab, one: Shell, tmp_path: Path
) -> None:
    log = one.directory / "log" / "haproxy.log"
    padding = "x" * 700
    followed_log = tmp_path / "followed"
    with followed(lab, followed_log):
        requests(lab, iter(["/begins"]))
        assert appears("/begins", followed_log)
        rotations, first, number = 0, log.stat().st_ino, 0
        while rotations < logs.BACKUPS + 1:
            requests(lab, (f"/none/{number + n}/{padding}" for n in range(1000)))
            number += 1000
            if log.stat().st_ino != first:
                rotations, first = rotations + 1, log.stat().st_ino
        requests(lab, iter(["/ends"]))
        assert appears("/ends", followed_log)
    files = sorted(log.parent.glob("haproxy.log*"))
    assert [path.name for path in files] == ["haproxy.log", "haproxy.log.1"]
    assert max(path.stat().st_size for path in files) <= logs.MIB * 2**20 + ONE_READ
    assert number * len(padding) > logs.MIB * 2**20
    lines = lab.setup_env("logs", "InstanceOne", "haproxy").stdout.splitlines()
    kept = [int(line.split("/none/")[1].split("/")[0]) for line in lines if "/none/" in line]
    # Those of both files, in order. HAProxy drops lines while supervisord is too slow for them.
    assert kept == sorted(set(kept))
    assert len(kept) > 0.9 * (number - kept[0])
    assert "/ends" in "\n".join(lines[-20:])


def test_only_supervisors_write_logs(lab: RunningLab) -> None:
    """They limit what they write. Others write a few lines at their start; QEMU's are trimmed."""
    if not lab.config.is_here:
        pytest.skip("its processes are elsewhere")
    few = ("rabbit@localhost_upgrade.log", "forkservers/log", "mariadb/ddl_recovery.log")
    others = set()
    supervised = 0
    for process in processes.marked(lab.config.state):
        for path in written(process.pid):
            if not path.endswith((".log", "/log")) or path.endswith(few):
                continue
            if "supervisor.supervisord" in process.cmdline():
                supervised += 1
            elif str(lab.config.state) in path:
                others.add(path)
    assert others == set()
    assert supervised > len(program_names("fake"))


def written(pid: int) -> list[str]:
    """The files that the process *pid* has open to write into."""
    found = []
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                info = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
                flags = int(info.partition("flags:")[2].split()[0], 8)
                if flags & (os.O_WRONLY | os.O_RDWR):
                    found.append(str(descriptor.readlink()))
    return found


def test_what_is_exported_of_a_machine_comes_by_ssh(lab: RunningLab, tmp_path: Path) -> None:
    """As from the provider hosts; here, the same files are here, too."""
    lifecycle = Lifecycle.of(lab.config.root)
    host = lab.host("InstanceTwo")
    export._fetch(lifecycle, host, tmp_path)
    for part in ("etc/proxy/haproxy.cfg", "etc/keystone/fernet-keys/0", "ssh/host_key"):
        assert (tmp_path / part).read_bytes() == (host.directory / part).read_bytes()
    assert (tmp_path / "log" / "keystone.log").exists()
    command = export._versions(f"{host.shared}/venv", ("haproxy",))
    said = export._output([*export._ssh(lifecycle, host), shlex.join(command)])
    assert "\nnova " in said
    assert "\nhaproxy " in said
