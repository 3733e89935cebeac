"""A newcomer's first minutes: a fresh clone, and the README's commands unchanged."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lab import processes
from lab.wheels import netns
from tests.conftest import ROOT, clone, end_tmux

BLOCK = re.compile(r"#\+begin_src sh\n(.*?)#\+end_src", re.DOTALL)
#: The one command that cannot run inside itself; CI runs it.
TEST = "./setup-env.py test"
SOCKET = f"openstackoid-readme-{os.getpid()}"


@pytest.fixture
def repository() -> Iterator[Path]:
    """A clone whose instances have other addresses than a lab that may be running."""
    directory = Path(tempfile.mkdtemp(prefix="clone-"))
    repository = clone(directory, "127.66.%d.1", "172.26.%d.0/24")
    yield repository
    if (repository / ".lab").exists():
        subprocess.run([str(repository / "setup-env.py"), "destroy"], check=False)
    end_tmux(SOCKET)
    shutil.rmtree(directory)


def _commands(readme: Path) -> list[str]:
    return [line for block in BLOCK.findall(readme.read_text()) for line in block.splitlines()]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert TEST in _commands(ROOT / "README.org")
    assert TEST in (ROOT / ".ci/run").read_text()


def test_every_command_of_the_readme_works_in_a_fresh_clone_and_leaves_nothing(
    repository: Path,
) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}
    environment |= {"OPENSTACKOID_TMUX_SOCKET": SOCKET}
    before = set(repository.iterdir())
    outputs = {}
    for command in _commands(repository / "README.org"):
        if command == TEST:
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=repository,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        outputs[command] = done.stdout
    assert list(outputs)[-1] == "./setup-env.py destroy"
    [created] = [text for command, text in outputs.items() if "server create" in command]
    assert created == "ACTIVE\n"

    state = repository / ".lab"
    assert processes.marked(state) == []
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert netns.prefix(state) not in links
    if shutil.which("nft", path=netns.SBIN):
        assert netns.prefix(state) not in netns.run("nft", "list", "tables")
    left = [*Path("/run").glob(f"{netns.prefix(state)}*"), *Path("/run").glob("netns/osd*")]
    assert [path for path in left if netns.prefix(state) in path.name] == []
    guests = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    assert [line for line in guests if f"/run/{netns.prefix(state)}" in " ".join(line)] == []
    listening = [
        one.laddr
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and str(one.laddr).startswith("addr(ip='127.66.")
    ]
    assert listening == []
    assert set(repository.iterdir()) - before == {repository / ".venv"}
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert changed.stdout == " M lab.yaml\n"
