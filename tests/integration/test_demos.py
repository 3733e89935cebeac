"""The demos: each scenario works, and leaves the lab as it was."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from lab import demo
from tests.conftest import ROOT

from .conftest import Shell


def resources(shell: Shell) -> list[list[str]]:
    """The IDs of all servers, images and ports of an instance."""
    tables = (f"uuid FROM {shell.cell}.instances", "id FROM glance.images")
    ids = [f"SELECT {table} WHERE deleted = 0 ORDER BY 1" for table in tables]
    return shell.sql("; ".join([*ids, "SELECT id FROM neutron.ports ORDER BY 1"]))


def panes(shell: Shell) -> str:
    form = "#{pane_id} #{pane_pid} #{pane_dead} #{pane_pipe} #{@instance} #{window_layout}"
    listing = ["tmux", "-L", shell.lab.tmux_socket, "list-panes", "-a", "-F", form]
    return subprocess.run(listing, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", demo.names(ROOT))
def test_a_demo_works_and_leaves_the_lab_as_it_was(
    name: str, one: Shell, two: Shell, tmp_path: Path
) -> None:
    before = [resources(one), resources(two), panes(one)]
    file = tmp_path / "demo.cast"
    one.lab.setup_env("demo", name, "--speed", "0", "--record", str(file))
    assert [resources(one), resources(two), panes(one)] == before

    header, *events = map(json.loads, file.read_text().splitlines())
    assert (header["version"], header["title"]) == (2, demo.load(ROOT, name).title)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(text for _, _, text in events))
    assert "stack@InstanceOne:~$ openstack image" in shown
    assert "image of InstanceTwo" in shown, "the pane beside shows who served that"
    for host in (one, two):
        configuration = host.directory / "etc" / "proxy" / "haproxy.cfg"
        assert "X-OpenStack-Request-ID req-" not in configuration.read_text()
