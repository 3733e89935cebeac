"""The process that owns a sandbox: it makes it, describes it, and removes it without trace.

It is a separate process, so that a sandbox ends with its caller, however the caller ends: the
owner's standard input then closes. If the owner itself is killed, the kernel ends everything in the
sandbox. Only files remain, and the next owner removes them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.machines.box import IMAGE

#: The address of the HTTP proxy inside a sandbox; it is the only way out.
PROXY_ADDRESS = "10.200.0.1"
PROXY_PORT = 3128

_PREFIX = "openstackoid-sandbox-"
_PARENT = Path("/var/tmp")
_CGROUPS = Path("/sys/fs/cgroup")
# The first process of the sandbox: it reaps orphans, and ends when its input closes.
_INIT = f"""\
set -e
ip link set lo up
ip link add way-out type bridge
ip address add {PROXY_ADDRESS}/24 dev way-out
ip link set way-out up
echo ready
cat
"""
_TINYPROXY = """\
Port {port}
Listen 127.0.0.1
MaxClients 200
Timeout 600
ConnectPort 443
LogLevel Error
LogFile "{directory}/tinyproxy.log"
"""


# In the sandbox, directories of its own hide these.
_LIBVIRTS = ("/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/lib/libvirt")
# The machines run as root in namespaces and a cgroup that are the sandbox's.
_QEMU = """\
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


def main(hypervisor: str, box: Path) -> None:
    """Keep a sandbox with *hypervisor*, docker or libvirt, until standard input closes.

    It prints the sandbox's description. Docker has *box* as an image; Vagrant has to add it itself.
    """
    # A Ctrl-C is for the caller; a SIGTERM has to run the clean-up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _sweep()
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_PARENT))
        stack.callback(_remove, directory)
        way_out = stack.enter_context(_way_out(directory))
        enter = stack.enter_context(_namespaces())
        docker = f"unix://{directory}/docker.sock"
        stack.enter_context(_relay(directory, enter, way_out))
        if hypervisor == "docker":
            stack.enter_context(_docker(directory, enter, docker))
            _import(box, enter, docker)
        else:
            stack.enter_context(_libvirt(directory, enter))
        print(json.dumps({"enter": enter, "directory": str(directory)}), flush=True)
        sys.stdin.read()


@contextmanager
def _way_out(directory: Path) -> Iterator[Path]:
    """Yield the Unix socket of a forward proxy in the host's network.

    Network namespaces do not separate Unix sockets that have a path.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = directory / "tinyproxy.conf"
    configuration.write_text(_TINYPROXY.format(port=port, directory=directory))
    path = directory / "way-out.sock"
    listen = [f"UNIX-LISTEN:{path},fork", f"TCP:127.0.0.1:{port}"]
    with (
        _process(["tinyproxy", "-d", "-c", str(configuration)], directory / "tinyproxy.out"),
        _process(["socat", *listen], directory / "way-out.log"),
    ):
        _await(path.exists, "the way out", directory / "way-out.log")
        yield path


@contextmanager
def _namespaces() -> Iterator[list[str]]:
    """Make namespaces; yield the prefix for commands that run in them."""
    argv = [
        "unshare",
        "--mount",
        "--net",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "--propagation=private",
        "sh",
        "-c",
        _INIT,
    ]
    process = subprocess.Popen(
        _bound_to_us(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("error: the kernel refused the namespaces of a sandbox (see above)")
        spaces = Path("/proc", str(process.pid), "ns")
        yield [
            "nsenter",
            f"--mount={spaces / 'mnt'}",
            f"--net={spaces / 'net'}",
            f"--uts={spaces / 'uts'}",
            f"--ipc={spaces / 'ipc'}",
            f"--pid={spaces / 'pid_for_children'}",
        ]
    finally:
        # The kernel ends everything in the sandbox before unshare sees its child end.
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


@contextmanager
def _relay(directory: Path, enter: Sequence[str], way_out: Path) -> Iterator[None]:
    listen = f"TCP-LISTEN:{PROXY_PORT},bind={PROXY_ADDRESS},fork,reuseaddr,backlog=100"
    argv = [*enter, "socat", listen, f"UNIX-CONNECT:{way_out}"]
    with _process(argv, directory / "relay.log"):
        yield


@contextmanager
def _docker(directory: Path, enter: Sequence[str], url: str) -> Iterator[None]:
    """The sandbox's own Docker daemon, with nothing outside *directory* and our cgroup."""
    argv = [
        *enter,
        "dockerd",
        f"--host={url}",
        f"--data-root={directory / 'docker'}",
        f"--exec-root={directory / 'docker-run'}",
        f"--pidfile={directory / 'docker.pid'}",
        f"--cgroup-parent=/{_cgroup(os.getpid())}",
        "--exec-opt=native.cgroupdriver=cgroupfs",
    ]
    with _daemon(argv, Path(url.removeprefix("unix://")), directory / "dockerd.log"):
        yield


@contextmanager
def _libvirt(directory: Path, enter: Sequence[str]) -> Iterator[None]:
    """The sandbox's own libvirtd, which the host's programs do not see."""
    for path in _LIBVIRTS:
        own = directory / path.lstrip("/")
        own.mkdir(parents=True)
        Path(path).mkdir(parents=True, exist_ok=True)
        subprocess.run([*enter, "mount", "--bind", str(own), path], check=True)
    (directory / "etc/libvirt/qemu.conf").write_text(_QEMU)
    answers = directory / "run/libvirt/libvirt-sock"
    with _daemon([*enter, "libvirtd"], answers, directory / "libvirtd.log"):
        yield


@contextmanager
def _daemon(argv: Sequence[str], answers: Path, log: Path) -> Iterator[None]:
    """Run a daemon that writes to *log*, once it listens on the Unix socket *answers*."""
    name = log.stem
    with _process(argv, log) as process:
        _await(lambda: answers.exists() or process.poll() is not None, name, log)
        if process.poll() is not None:
            raise SystemExit(f"error: {name} ended: {_last(log)}")
        yield


def _import(box: Path, enter: Sequence[str], url: str) -> None:
    argv = [*enter, "docker", "--host", url, "import", str(box), f"{IMAGE}:latest"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: docker import failed: {done.stderr.strip()}")


@contextmanager
def _process(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that writes to *log*, and kill it in the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            _bound_to_us(argv),
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _bound_to_us(argv: Sequence[str]) -> list[str]:
    """A command line for *argv* that the kernel kills when the owner ends."""
    return ["setpriv", "--pdeathsig=KILL", "--", *argv]


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """*environment* without the caller's Docker."""
    return {key: value for key, value in environment.items() if not key.startswith("DOCKER_")}


def _await(is_there: Callable[[], bool], what: str, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {what} did not start within {seconds:.0f} s: {_last(log)}")
        time.sleep(0.02)


def _last(log: Path, lines: int = 5) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _cgroup(pid: int) -> str:
    return f"{_PREFIX}{pid}"


def _remove(directory: Path) -> None:
    """Remove a sandbox's files and its empty cgroups."""
    cgroup = _cgroup(_pid(directory))
    for root in (*_CGROUPS.glob(f"*/{cgroup}"), _CGROUPS / cgroup):
        for path in sorted(root.glob("**/"), reverse=True):
            if path.is_dir():
                path.rmdir()
    shutil.rmtree(directory)


def _sweep() -> None:
    """Remove the files of owners that were killed."""
    for directory in _PARENT.glob(f"{_PREFIX}*"):
        if not _is_owner(_pid(directory)):
            _remove(directory)


def _is_owner(pid: int) -> bool:
    """Whether *pid* is an owner; a zombie, whose command line is empty, no longer is."""
    try:
        return b"tests.machines.sandbox_owner" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False


def _pid(directory: Path) -> int:
    """The owner of the sandbox in *directory*."""
    return int(directory.name.removeprefix(_PREFIX).split("-")[0])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
