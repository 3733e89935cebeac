"""A private place for real Vagrant machines: namespaces, a hypervisor, and one way out.

``python -m tests.machines.sandbox -- COMMAND…`` runs a command in a sandbox, ``-- bash`` opens a
shell in it. ``--keep-until-stdin-closes`` instead prints how other shells enter it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.machines import box
from tests.machines.sandbox_owner import PROXY_ADDRESS, PROXY_PORT

_ROOT = Path(__file__).resolve().parent.parent.parent
_DEFAULT_CACHE = Path("/var/tmp/openstackoid-boxes")
#: The HTTP proxy that the sandbox and the machines in it reach.
PROXY = f"http://{PROXY_ADDRESS}:{PROXY_PORT}"
#: Hosts that are reached without the proxy: the sandbox and its machines.
NO_PROXY = "localhost,127.0.0.0/8,::1,192.168.56.0/24"


class SandboxError(Exception):
    """The sandbox could not be made; the text says why."""


class Sandbox:
    """A sandbox whose machines use the box in *cache*, with *hypervisor* docker or libvirt.

    >>> with Sandbox(cache) as sandbox:
    ...     sandbox.run(["vagrant", "up"], cwd=directory, check=True)
    """

    def __init__(self, cache: Path = _DEFAULT_CACHE, hypervisor: str = "docker") -> None:
        self._cache = cache
        #: docker or libvirt
        self.hypervisor = hypervisor
        self._owner: subprocess.Popen[str] | None = None
        self._enter: list[str] = []
        #: Environment variables that commands in the sandbox need.
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        image = (box.build if self.hypervisor == "docker" else box.build_disk)(self._cache)
        # In its own session: a Ctrl-C must not interrupt its clean-up.
        self._owner = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.machines.sandbox_owner"),
                *(self.hypervisor, str(image)),
            ],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._prepare(self._owner, image)
        except BaseException:
            self._end()
            raise
        return self

    def _prepare(self, owner: subprocess.Popen[str], image: Path) -> None:
        assert owner.stdout is not None
        answer = owner.stdout.readline()
        if not answer:
            raise SandboxError("the sandbox could not be made; see its owner's standard error")
        told = json.loads(answer)
        self._enter = told["enter"]
        self.environment = _environment(Path(told["directory"]), self.hypervisor)
        if self.hypervisor == "libvirt":
            add = ["vagrant", "box", "add", "--name", box.IMAGE, str(image)]
            done = self.run(add, cwd=self._cache)
            if done.returncode != 0:
                raise SandboxError(f"vagrant box add: {done.stderr.strip()}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._owner is None:
            return
        assert self._owner.stdin is not None
        self._owner.stdin.close()
        self._owner.wait()
        self._owner = None

    def command(self, argv: Sequence[str], cwd: Path) -> list[str]:
        """A command line that runs *argv* in the sandbox, in *cwd*; for the caller's own Popen."""
        return [*self._enter, f"--wdns={cwd}", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        *,
        stdin: str = "",
        timeout: float | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the sandbox, with *env* added to our environment.

        Processes that it leaves, even after a timeout, end with the sandbox.

        :raises subprocess.CalledProcessError: with *check*, when it fails.
        :raises subprocess.TimeoutExpired: when it takes longer than *timeout* seconds.
        """
        return subprocess.run(
            self.command(argv, cwd),
            env={**os.environ, **self.environment, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=check,
        )

    def how_to_enter(self) -> str:
        """The command that opens a shell in the sandbox."""
        variables = [f"{key}={value}" for key, value in self.environment.items()]
        return shlex.join([*self._enter, "--", "env", *variables, "bash"])


def _environment(directory: Path, hypervisor: str) -> dict[str, str]:
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), PROXY)
    return {
        **proxies,
        "NO_PROXY": NO_PROXY,
        "no_proxy": NO_PROXY,
        "DOCKER_HOST": f"unix://{directory}/docker.sock",
        "DOCKER_CONFIG": str(directory / "docker-client"),
        "VAGRANT_HOME": str(directory / "vagrant"),
        "VAGRANT_DEFAULT_PROVIDER": hypervisor,
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines.sandbox", description=__doc__)
    parser.add_argument("--box-cache", type=Path, default=_DEFAULT_CACHE, metavar="DIR")
    parser.add_argument("--hypervisor", choices=("docker", "libvirt"), default="docker")
    parser.add_argument("--keep-until-stdin-closes", action="store_true")
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    arguments = parser.parse_args()
    if bool(arguments.command) == arguments.keep_until_stdin_closes:
        parser.error("either a COMMAND or --keep-until-stdin-closes")
    with Sandbox(arguments.box_cache.resolve(), arguments.hypervisor) as sandbox:
        if arguments.keep_until_stdin_closes:
            print(sandbox.how_to_enter(), flush=True)
            sys.stdin.read()
            return 0
        return subprocess.run(
            sandbox.command(arguments.command, Path.cwd()),
            env={**os.environ, **sandbox.environment},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
