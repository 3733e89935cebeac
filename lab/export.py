"""An archive of what somebody who helps needs to know about a lab, without its secrets."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

from lab import doctor, logs, redaction
from lab.bootstrap import VENV
from lab.errors import LabError
from lab.lifecycle import Lifecycle
from lab.providers.base import Host
from lab.redaction import Redaction

#: What the archive has of the lab's state, and of an instance's directory.
_OF_LAB = (
    "choices.json",
    "clouds.yaml",
    "ssh_config",
    "log/*",
    "provider/*.conf",
    "provider/*.json",
    "dashboard/*.conf",
    "dashboard/local/*.py",
    "shared/venv/forkservers/log",
    "shared/database.new/*.log",
)
_OF_INSTANCE = ("etc/**/*", "log/*", "ssh/sshd_config", "data/libvirt/log/**/*.log")
#: What is fetched of an instance's directory on a machine: the same, and its secrets to know them.
_FETCHED = ("etc", "log", "ssh", "data/rabbitmq/.erlang.cookie", "data/libvirt/log")
#: Seconds for each command that asks for facts.
_PATIENCE = 120

# Prints what runs here: $0 has the virtual environments, the arguments are Debian packages.
_VERSIONS = """\
uname -srm
. /etc/os-release && echo "$PRETTY_NAME"
for venv in $0; do
    [ -d "$venv" ] || continue
    echo; echo "$venv: $("$venv/bin/python" --version 2>&1)"
    ls "$venv"/lib/python*/site-packages | sed -n 's/-\\([^-]*\\)\\.dist-info$/ \\1/p'
done
echo; echo Debian packages:
dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n' "$@" 2>&1
"""

_README = """\
What somebody who helps needs to know about a lab of OpenStackoid. Passwords, keys and tokens were
replaced by <removed:NAME>; files that have nothing else, databases, images, and consoles and disks
of servers are not here. A log's earlier part, if there is one, is at its beginning.

  lab.yaml                  the description of the lab; git.txt has the commit, and what it changed
  status.json, doctor.json  what `status` and `doctor` say with --json
  versions/                 Debian's and Python's packages, of this machine and of each other one
  lab/                      what `up` and the provider wrote, and the choices of the command line
  NAME/etc, NAME/log        the generated configuration and the logs of the instance NAME
"""


def export(root: Path, target: Path) -> list[str]:
    """Write the archive about the lab of the repository *root*; return what it has to lack.

    The lab may be up or down, or broken. The name of *target* says how it is compressed.

    :raises LabError: when a secret cannot be known, or the archive cannot be written.
    """
    compress = _compression(target)
    lacking: list[str] = []
    with ExitStack() as stack:
        lifecycle = _readable(root, lacking)
        instances = _instances(root / ".lab", lifecycle, stack, lacking)
        clean = Redaction(redaction.secrets(root / ".lab", instances))
        draft = target.with_name(f".{target.name}.new")
        try:
            stack.callback(draft.unlink, missing_ok=True)
            # Its logs are for nobody but the user.
            draft.touch(0o600)
            with compress(draft) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
                writer = _Writer(archive, target.name.partition(".tar.")[0], clean, lacking)
                _write(writer, root, lifecycle, instances)
            draft.replace(target)
        except OSError as error:
            raise LabError(f"{target} cannot be written: {error.strerror or error}") from error
    return [clean(line) for line in lacking]


def _compression(target: Path) -> Callable[[Path], IO[bytes]]:
    """What opens a file to write it compressed, as the name of *target* asks for.

    :raises LabError: for any other name.
    """
    if target.name.endswith(".tar.gz"):
        return lambda path: cast("IO[bytes]", gzip.open(path, "wb"))
    if target.name.endswith(".tar.zst"):
        import zstandard  # noqa: PLC0415 - few commands need it

        return lambda path: cast("IO[bytes]", zstandard.open(path, "wb"))
    raise LabError(f"{target}: give it a name that ends in .tar.zst or .tar.gz")


class _Writer:
    """Adds to *archive*, below *top*, texts that *clean* has cleaned; *lacking* is what fails."""

    def __init__(
        self, archive: tarfile.TarFile, top: str, clean: Redaction, lacking: list[str]
    ) -> None:
        self._archive = archive
        self._top = top
        self._clean = clean
        self.lacking = lacking

    def text(self, name: str, text: str) -> None:
        content = self._clean(text).encode(errors="surrogateescape")
        member = tarfile.TarInfo(f"{self._top}/{self._clean(name)}")
        member.size = len(content)
        member.mode = 0o600
        self._archive.addfile(member, io.BytesIO(content))

    def fact(self, name: str, ask: Callable[[], str]) -> None:
        """Add what *ask* says; its failure is a fact, too."""
        try:
            self.text(name, ask())
        except (LabError, OSError, ValueError) as error:
            self.lacking.append(f"{name}: {error}")

    def files(self, name: str, directory: Path, patterns: tuple[str, ...]) -> None:
        """Add the files in *directory* of these *patterns*, below *name*."""
        found = {path for pattern in patterns for path in directory.glob(pattern)}
        for path in sorted(found):
            if path.is_symlink() or not path.is_file() or redaction.is_secret(directory, path):
                continue
            if path.suffix[1:].isdigit() and path.with_suffix("").exists():
                # A token may begin in this file and end in the next.
                continue
            shown = str(Path(name, path.relative_to(directory)))
            try:
                self.text(shown, logs.read(path))
            except OSError as error:
                self.lacking.append(f"{shown}: {error.strerror}")


def _write(
    writer: _Writer, root: Path, lifecycle: Lifecycle | None, instances: Mapping[str, Path]
) -> None:
    writer.fact("git.txt", lambda: _git(root))
    writer.files("", root, ("lab.yaml",))
    writer.fact("doctor.json", lambda: json.dumps(doctor.facts(root), indent=2))
    if lifecycle:
        writer.fact("status.json", lambda: json.dumps(lifecycle.status(), indent=2))
    here = " ".join((str(VENV), str(root / ".lab" / "shared" / "venv")))
    packages = lifecycle.debian_packages if lifecycle else ()
    writer.fact("versions/this-machine.txt", lambda: _output(_versions(here, packages)))
    if lifecycle and not lifecycle.provider.is_here:
        for host in lifecycle.hosts_up():
            command = _versions(f"{host.shared}/venv", lifecycle.stack.needs.packages)
            ask = [*_ssh(lifecycle, host), shlex.join(command)]
            writer.fact(f"versions/{host.name}.txt", lambda ask=ask: _output(ask))  # type: ignore[misc]
    writer.files("lab", root / ".lab", _OF_LAB)
    for name, directory in instances.items():
        writer.files(name, directory, _OF_INSTANCE)
    lacking = "".join(f"  {line}\n" for line in writer.lacking)
    writer.text("README", _README + (f"\nWhat could not be had:\n{lacking}" if lacking else ""))


def _readable(root: Path, lacking: list[str]) -> Lifecycle | None:
    try:
        return Lifecycle.of(root)
    except LabError as error:
        lacking.append(f"the lab: {error}")
        return None


def _instances(
    state: Path, lifecycle: Lifecycle | None, stack: ExitStack, lacking: list[str]
) -> dict[str, Path]:
    """A directory here for each instance, with its files; those of machines until *stack* ends."""
    if lifecycle is None or lifecycle.provider.is_here:
        # Also those that the lab no longer has.
        return {path.parent.name: path.parent for path in sorted(state.glob("*/login"))}
    found = {}
    up = lifecycle.hosts_up()
    for host in lifecycle.provider.hosts():
        if host not in up:
            lacking.append(f"{host.name}: it is down, and its files are on its machine")
            continue
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            _fetch(lifecycle, host, directory)
        except LabError as error:
            lacking.append(f"{host.name}: {error}")
        found[host.name] = directory
    if lifecycle.stack.name == "devstack":
        lacking.append("DevStack's logs: ./setup-env.py logs NAME SERVICE prints them")
    return found


def _fetch(lifecycle: Lifecycle, host: Host, directory: Path) -> None:
    """Bring the files of the instance on *host* into *directory*.

    :raises LabError: when ssh does not bring them.
    """
    pack = ["tar", "-C", str(host.directory), "-cz", *_FETCHED]
    command = [*_ssh(lifecycle, host), shlex.join([*lifecycle.stack.prefix(host), *pack])]
    packed = _run(command)
    # What is not there makes tar fail, but not before it has packed all else.
    if _run(["tar", "-C", str(directory), "-xz"], packed.stdout).returncode:
        said = packed.stderr.decode(errors="replace").split("\n")
        raise LabError(f"its files cannot be fetched: {said[0]}")


def _ssh(lifecycle: Lifecycle, host: Host) -> list[str]:
    config = str(lifecycle.provider.ssh_config)
    return ["ssh", "-F", config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host.name]


def _versions(environments: str, packages: tuple[str, ...]) -> list[str]:
    return ["sh", "-c", _VERSIONS, environments, *sorted(set(packages))]


def _git(root: Path) -> str:
    git = ["git", "-C", str(root)]
    return _output([*git, "log", "-1", "--format=%H %cI %s"]) + _output([*git, "diff", "HEAD"])


def _output(command: list[str]) -> str:
    """What *command* prints.

    :raises LabError: when it is not there, or takes too long.
    """
    done = _run(command)
    return (done.stdout + done.stderr).decode(errors="surrogateescape")


def _run(command: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, input=stdin, capture_output=True, check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{command[0]}: {error}") from error
