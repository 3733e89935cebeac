"""Building and migrating schemas, and the errors if that fails; without starting MariaDB."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.wheels import database, launch
from lab.wheels.database import DatabaseError
from lab.wheels.layout import Layout
from tests.unit.lab.specs import spec

MANAGERS = {
    "keystone": "keystone-manage db_sync",
    "glance": "glance-manage db sync",
    "placement": "placement-manage db sync",
    "neutron": "neutron-db-manage upgrade heads",
    "nova": "nova-manage api_db sync",
}


@dataclass(frozen=True)
class Ended:
    """A process that ends at once."""

    status: int

    def wait(self) -> int:
        return self.status


@dataclass
class Commands:
    """A stand-in for the fork servers: records launches, and decides how each kind ends."""

    lines: list[str] = field(default_factory=list)
    ends: dict[str, int | Exception] = field(default_factory=dict)

    def launch(
        self, kind: str, _: str, entry: str, argv: list[str], *__: object, **___: object
    ) -> Ended:
        end = self.ends.get(kind, 0)
        if isinstance(end, Exception):
            raise end
        name, _option, _configuration, *arguments = argv
        self.lines.append(" ".join((name, *arguments[:2])))
        return Ended(end)

    def runs(self, kind: str) -> int:
        return self.lines.count(MANAGERS[kind])


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(launch, "launch", found.launch)
    return found


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An instance without data; MariaDB's programs do nothing."""
    program = tmp_path / "mariadb"
    program.write_text(
        '#!/bin/sh\nfor word; do case $word in --datadir=*) mkdir "${word#*=}";; esac; done\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(database, "executable", lambda _: str(program))
    monkeypatch.setattr(database, "_server", lambda *_: contextlib.nullcontext())
    found = Layout(spec(tmp_path))
    for directory in (found.data, found.log, found.shared / "venv"):
        directory.mkdir(parents=True)
    install(found, "one")
    return found


def install(layout: Layout, digest: str) -> None:
    (layout.shared / "venv" / "installed").write_text(digest)


@pytest.mark.parametrize("error", [RuntimeError("broken"), TimeoutError("timed out"), 3])
def test_every_failure_is_reported_and_no_template_is_left(
    layout: Layout, commands: Commands, error: int | Exception
) -> None:
    commands.ends = dict.fromkeys(("glance", "nova"), error)
    with pytest.raises(DatabaseError) as caught:
        database.prepare(layout)
    assert "glance" in str(caught.value)
    assert "nova" in str(caught.value)
    assert not (layout.shared / "database").exists()
    assert not (layout.data / "mariadb").exists()

    commands.ends.clear()
    database.prepare(layout)
    assert (layout.data / "mariadb").is_dir()


def test_a_command_that_fails_is_named_with_its_log(layout: Layout, commands: Commands) -> None:
    commands.ends = {"keystone": 3}
    with pytest.raises(DatabaseError) as caught:
        database.prepare(layout)
    log = layout.shared / "database.new" / "keystone.log"
    assert str(caught.value) == f"keystone-manage db_sync failed: status 3 (log: {log})"
    assert log.exists()


def test_a_template_is_built_once_for_an_installation(layout: Layout, commands: Commands) -> None:
    for digest, runs in (("one", 1), ("one", 1), ("two", 2)):
        install(layout, digest)
        shutil.rmtree(layout.data / "mariadb", ignore_errors=True)
        database.prepare(layout)
        assert commands.runs("keystone") == runs


def test_a_template_that_names_no_installation_is_built_again(
    layout: Layout, commands: Commands
) -> None:
    (layout.shared / "database").mkdir()
    database.prepare(layout)
    assert commands.runs("keystone") == 1


def test_new_data_is_current_until_another_installation_comes(
    layout: Layout, commands: Commands
) -> None:
    database.prepare(layout)
    assert database.is_current(layout)
    install(layout, "two")
    assert not database.is_current(layout)
    commands.lines.clear()
    database.migrate(layout)
    assert database.is_current(layout)
    assert {kind for kind in MANAGERS if commands.runs(kind) == 1} == set(MANAGERS)
    # It fails if the cell exists already.
    assert "nova-manage cell_v2 create_cell" not in commands.lines


def test_data_that_names_no_installation_is_not_current(layout: Layout) -> None:
    (layout.data / "mariadb").mkdir()
    assert not database.is_current(layout)


def test_a_failed_migration_says_the_way_out_and_does_not_count(
    layout: Layout, commands: Commands
) -> None:
    database.prepare(layout)
    install(layout, "two")
    commands.ends = {"neutron": 1, "nova": RuntimeError("broken")}
    with pytest.raises(DatabaseError) as caught:
        database.migrate(layout)
    said = str(caught.value)
    log = layout.log / "migration-neutron.log"
    assert f"neutron-db-manage upgrade heads failed: status 1 (log: {log})" in said
    assert "broken" in said
    assert "`./setup-env.py destroy`" in said
    assert not database.is_current(layout)
    # Half of the commands ran: the schema no longer matches the old installation.
    install(layout, "one")
    assert not database.is_current(layout)


@pytest.fixture
def deaf() -> Iterator[Path]:
    """A directory where a fork server never answers; pytest's own paths are too long."""
    with (
        tempfile.TemporaryDirectory(prefix="oid-") as name,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{name}/keystone.sock")
        listener.listen()
        yield Path(name)


def test_a_fork_server_that_does_not_answer_is_a_launch_error(
    deaf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    with pytest.raises(launch.LaunchError, match="no fork server for keystone"):
        launch.launch("keystone", str(deaf), "module:main", ["name"], {})
