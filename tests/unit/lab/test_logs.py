"""How large the logs of a lab become."""

from __future__ import annotations

import configparser
import os
import subprocess
import time
from pathlib import Path

import pytest

from lab import logs
from lab.wheels import configure
from lab.wheels.layout import Layout
from lab.wheels.programs import programs
from lab.wheels.services import Hypervisor, program_names
from tests.conftest import ROOT
from tests.unit.lab.conftest import eventually
from tests.unit.lab.specs import spec


@pytest.mark.parametrize("hypervisor", ["fake", "libvirt"])
def test_each_log_of_an_instance_has_its_limit(tmp_path: Path, hypervisor: Hypervisor) -> None:
    layout = Layout(spec(tmp_path, hypervisor))
    context = {
        **configure._context(layout),
        "programs": programs(layout),
        "digests": dict.fromkeys(layout.program_names, ""),
    }
    parser = configparser.RawConfigParser()
    parser.read_string(configure._render("supervisord.conf", context))
    limits = [
        (parser[section][f"{option}_maxbytes"], parser[section][f"{option}_backups"])
        for section in parser.sections()
        for option in ("logfile", "stdout_logfile")
        if option in parser[section]
    ]
    assert limits == [(f"{logs.MIB}MB", str(logs.BACKUPS))] * (len(layout.program_names) + 1)


def test_the_readme_says_how_much_the_logs_take() -> None:
    fake, real = (logs.bound(len(program_names(one))) for one in ("fake", "libvirt"))
    said = f"at most {fake} MiB for an instance, {real} MiB with real guests"
    assert said in " ".join((ROOT / "README.org").read_text().split())


def test_a_log_is_printed_after_the_one_before_it(tmp_path: Path) -> None:
    log = tmp_path / "a b.log"

    def printed() -> subprocess.CompletedProcess[str]:
        command = logs.reader(str(log))
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert printed().returncode != 0
    log.write_text("new\n")
    assert printed().stdout == "new\n"
    Path(f"{log}.1").write_text("old\n")
    assert printed().stdout == "old\nnew\n"


def test_a_log_is_read_from_its_first_whole_line_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of a token\nnew\n")
    assert logs.read(log) == "of a token\nnew\n"
    Path(f"{log}.1").write_text("a half\nthe first half ")
    assert logs.read(log) == "the first half of a token\nnew\n"


def test_a_file_that_nobody_rotates_keeps_its_length_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_TRIM_EVERY", 0.05)
    large, small = (tmp_path / name / "console.log" for name in ("a guest", "another"))
    written, limit = 0, logs.MIB * 2**20 * (logs.BACKUPS + 1)
    for path in (large, small):
        path.parent.mkdir()
    small.write_bytes(b"x" * limit)
    command = logs.trimmer(f"{tmp_path}/*/console.log", f"{tmp_path}/nothing/*.log")
    with subprocess.Popen(command) as process, large.open("wb") as stream:
        try:
            for number in range(60):
                written += stream.write(f"{number:<{2**20}}".encode())
                stream.flush()
                time.sleep(0.01)
            assert eventually(lambda: large.stat().st_blocks * 512 <= limit)
        finally:
            process.kill()
    assert large.stat().st_size == written == 60 * 2**20
    with large.open("rb") as file:
        file.seek(-2 * 2**20, os.SEEK_END)
        assert file.read().split() == [b"58", b"59"]
    assert small.stat().st_blocks * 512 >= limit
