"""Find and install missing Debian packages, without starting their services.

This module imports only the standard library: setting up ``.venv`` may need a package, and a lab's
machines run ``python3 -m lab.apt ensure DIRECTORY PACKAGE…`` to install packages and ``… remove
DIRECTORY`` to remove them again.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError

_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_MARK = "# Made by OpenStackoid's setup-env.py while it installs packages."
# invoke-rc.d and deb-systemd-invoke ask this script; 101 forbids a start (invoke-rc.d(8)). It only
# forbids while the installing process lives, so that a copy left by a kill -9 does no harm.
_POLICY_TEXT = """\
#!/bin/sh
{mark}
kill -0 {pid} 2>/dev/null && exit 101
[ -x {saved} ] && exec {saved} "$@"
exit 0
"""
#: Dpkg's database. Dpkg itself locks files in it, with another kind of lock.
_DPKG = Path("/var/lib/dpkg")
#: How apt is told to use a bundle: apt.conf(5).
_BUNDLED = "APT_CONFIG"
_UNITS = (".service", ".socket", ".timer", ".path")


def _environment() -> list[str]:
    """Variables for apt-get, as arguments of env(1)."""
    # sudo drops this one.
    ours = [f"{_BUNDLED}={os.environ[_BUNDLED]}"] if _BUNDLED in os.environ else []
    # On some machines, needrestart restarts services by itself.
    return ["DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1", *ours]


def missing(packages: Iterable[str]) -> list[str]:
    """The *packages* that are not installed, each once, in alphabetical order.

    :raises LabError: on a machine without Debian's package manager.
    """
    installed = _installed()
    return sorted(name for name in set(packages) if name not in installed)


def install_line(packages: Iterable[str]) -> str:
    """The command by which a user installs *packages*."""
    return f"sudo apt-get install --no-install-recommends {' '.join(packages)}"


def check(packages: Iterable[str]) -> None:
    """Make sure that *packages* are installed or can be.

    :raises LabError: with the command to type, when some are missing and we may not install them.
    """
    lacking = missing(packages)
    if lacking and _become_root() is None:
        raise LabError(f"Debian packages are missing: {install_line(lacking)}")


def ensure(
    packages: Iterable[str],
    say: Callable[[str], None],
    directory: Path | None = None,
    *,
    removable: bool = False,
) -> None:
    """Install the missing *packages*, and *say* so; leave their services stopped.

    New services are stopped and disabled; existing services stay as they are. apt's output goes
    into *directory*. So does a note by which a later call finishes what a killed call began, and,
    with *removable*, the list of new packages for :func:`remove`.

    :raises LabError: when they cannot be installed; without permission, nothing changes.
    """
    packages = set(packages)
    note = directory / "packages-before.txt" if directory else None
    if missing(packages) or (note and note.exists()):
        with _alone():
            _ensure(packages, say, directory, note, removable=removable)


def _ensure(
    packages: set[str],
    say: Callable[[str], None],
    directory: Path | None,
    note: Path | None,
    *,
    removable: bool,
) -> None:
    begun = note is not None and note.exists()
    lacking = missing(packages)
    if not lacking and not begun:
        return  # The process that we waited for has installed them.
    root = _become_root()
    if root is None:
        raise LabError(f"Debian packages are missing: {install_line(lacking)}")
    if lacking:
        stay = "" if removable else " (they stay after `destroy`)"
        say(f"Installing Debian packages: {' '.join(lacking)}{stay}")
    before = set(note.read_text().split()) if note and begun else _installed()
    if note:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("\n".join(sorted(before)))
    try:
        with _nothing_starts(root):
            if lacking:
                _apt_install(root, lacking, directory and directory / "packages.log")
    finally:
        brought = _installed() - before
        if directory and removable:
            _remember(directory, brought)
        _disable(root, _units(brought))
    if note:
        note.unlink()
    still = missing(lacking)
    if still:
        raise LabError(f"apt-get did not install {' '.join(still)}: {install_line(still)}")


def remove(directory: Path) -> None:
    """Remove the packages that are listed in *directory*, with their configuration.

    :raises LabError: when apt-get refuses, or we may not remove packages.
    """
    if not _remembered(directory) & _installed():
        return
    root = _become_root()
    if root is None:
        raise LabError("only root may remove packages here: become root")
    purge = [*root, "env", *_environment(), "apt-get", "-o", "DPkg::Lock::Timeout=120", "purge"]
    with _alone():
        brought = sorted(_remembered(directory) & _installed())
        done = _logged([*purge, "--yes", *brought], directory / "packages.log")
    if done.returncode != 0:
        last = done.stdout.strip().splitlines()[-1:]
        raise LabError(f"apt-get purge failed: {' '.join(last)}")


def _remembered(directory: Path) -> set[str]:
    try:
        return set((directory / "packages-brought.txt").read_text().split())
    except FileNotFoundError:
        return set()


def _remember(directory: Path, packages: Iterable[str]) -> None:
    every = sorted({*packages, *_remembered(directory)})
    (directory / "packages-brought.txt").write_text("\n".join(every))


def main() -> None:
    """Run ``ensure DIRECTORY PACKAGE…`` or ``remove DIRECTORY``."""
    try:
        match sys.argv[1:]:
            case ["ensure", directory, *names]:
                ensure(names, lambda line: print(line, flush=True), Path(directory), removable=True)
            case ["remove", directory]:
                remove(Path(directory))
            case _:
                sys.exit("usage: python3 -m lab.apt {ensure DIRECTORY NAME… | remove DIRECTORY}")
    except LabError as error:
        sys.exit(f"error: {error}")


def _installed() -> set[str]:
    try:
        listing = subprocess.run(
            ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except FileNotFoundError as error:
        raise LabError("dpkg-query is missing: the lab needs Debian or a derivative") from error
    pairs = (line.split() for line in listing.splitlines())
    return {pair[1] for pair in pairs if len(pair) > 1 and pair[0] == "installed"}


def _become_root() -> list[str] | None:
    """The prefix for a command that root has to run; None if we may not become root."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        allowed = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
        if allowed.returncode == 0:
            return ["sudo", "-n"]
    return None


def _apt_install(root: Sequence[str], packages: Sequence[str], log: Path | None) -> None:
    """Install *packages*; if that fails, refresh the package lists and try once more."""
    apt = [*root, "env", *_environment(), "apt-get", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "--yes", "--no-install-recommends", *packages]
    first = _logged(install, log)
    if first.returncode == 0:
        return
    _logged([*apt, "update"], log)
    second = _logged(install, log)
    if second.returncode != 0:
        last = [line for line in second.stdout.splitlines() if line.startswith("E:")][:1]
        way_out = f"try {install_line(packages)}"
        if _BUNDLED in os.environ:
            way_out = "make a new bundle: this machine may have newer packages than this one"
        raise LabError(
            f"apt-get failed: {' '.join(last) or f'status {second.returncode}'}; {way_out}"
        )


def _logged(argv: Sequence[str], log: Path | None) -> subprocess.CompletedProcess[str]:
    # In its own session: a Ctrl-C on the terminal must not interrupt dpkg.
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        check=False,
    )
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(argv)}\n{done.stdout}")
    return done


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process of this project changes packages.

    Each of two at once would take the other's packages for its own, and remove its policy.
    """
    directory = os.open(_DPKG, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


@contextmanager
def _nothing_starts(root: Sequence[str]) -> Iterator[None]:
    """Keep packages from starting services while inside; then restore the former policy."""
    saved = _POLICY.with_name(_POLICY.name + ".before-openstackoid")
    _put_back(root, saved)
    text = _POLICY_TEXT.format(mark=_POLICY_MARK, pid=os.getpid(), saved=saved)
    # Make SIGTERM unwind like a Ctrl-C, so that the finally below runs.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if _POLICY.exists():
            _as_root(root, ["mv", str(_POLICY), str(saved)])
        _as_root(root, ["tee", str(_POLICY)], text)
        _as_root(root, ["chmod", "755", str(_POLICY)])
        yield
    finally:
        _put_back(root, saved)
        signal.signal(signal.SIGTERM, before)


def _put_back(root: Sequence[str], saved: Path) -> None:
    """Remove our policy, even from an interrupted run, and restore the former one."""
    if _POLICY.exists() and _POLICY_MARK in _POLICY.read_text(errors="replace"):
        _as_root(root, ["rm", "-f", str(_POLICY)])
    if saved.exists() and not _POLICY.exists():
        _as_root(root, ["mv", str(saved), str(_POLICY)])


def _as_root(root: Sequence[str], argv: Sequence[str], text: str | None = None) -> None:
    done = subprocess.run(
        [*root, *argv], input=text or "", capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"{shlex.join(argv)} failed: {done.stderr.strip()}")


def _units(packages: Iterable[str]) -> list[str]:
    """The paths of the systemd units and init scripts in *packages*."""
    names = sorted(packages)
    if not names:
        return []
    listing = subprocess.run(
        ["dpkg-query", "--listfiles", *names], capture_output=True, text=True, check=False
    ).stdout
    return [
        path
        for path in listing.splitlines()
        if (path.endswith(_UNITS) and "/systemd/system/" in path)
        or (path.startswith("/etc/init.d/") and not path.endswith("/README"))
    ]


def _disable(root: Sequence[str], units: Iterable[str]) -> None:
    """Stop and disable *units*, whichever init system this machine has."""
    runs_systemd = Path("/run/systemd/system").is_dir()
    for path in units:
        name = Path(path).name
        if path.startswith("/etc/init.d/"):
            commands = [["update-rc.d", name, "disable"]]
        elif "@." in name:
            continue
        elif runs_systemd:
            commands = [["systemctl", "disable", "--now", name]]
        else:
            commands = [["deb-systemd-helper", "disable", name]]
        for command in commands:
            # A unit that cannot be enabled cannot be disabled either: ignore the failure.
            subprocess.run([*root, *command], capture_output=True, check=False)


if __name__ == "__main__":
    main()
