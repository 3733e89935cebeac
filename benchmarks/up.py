"""Measure how long a newcomer waits, and how much memory a lab takes.

``python benchmarks/up.py`` copies the repository to a new directory, without ``.venv`` and
``.lab``. One run there measures *cold*, from ``./setup-env.py up`` to the first server made across
instances, and *warm*, the same after ``halt``. Debian's packages must be present. The lab gets its
own addresses, so another lab may run at the same time; but on a busy machine the times mean little.
In between, it adds up the memory of all processes of the lab as PSS (each page divided by the
processes that share it), and divides the sum by the instances.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from lab import processes

ROOT = Path(__file__).resolve().parent.parent
CREATE = (
    "openstack server create {name} --scope image=InstanceTwo --image cirros --flavor m1.tiny"
    " --network private --wait -f value -c status"
)
STEP = re.compile(r"^(?P<who>\S+) +(?P<title>.+?) +✔ +(?P<seconds>[\d.]+) s$", re.MULTILINE)


def clone(directory: Path) -> None:
    """Copy the files that git does not ignore, and move the lab to other addresses."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    description = directory / "lab.yaml"
    description.write_text(description.read_text().replace("127.0.", "127.77."))


def run(directory: Path, *arguments: str) -> str:
    """The output of ``./setup-env.py ARGUMENTS…`` there, which has to succeed."""
    environment = {**os.environ, "OPENSTACKOID_TMUX_SOCKET": f"benchmark-{os.getpid()}"}
    done = subprocess.run(
        [str(directory / "setup-env.py"), *arguments],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"./setup-env.py {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def first_server(directory: Path, name: str) -> tuple[float, float, dict[str, float]]:
    """Seconds until ``up`` ends and until a server is ACTIVE, and the longest time of each step."""
    started = time.monotonic()
    output = run(directory, "up", "--no-attach")
    up = time.monotonic() - started
    status = run(directory, "ssh", "InstanceOne", "--", *shlex.split(CREATE.format(name=name)))
    active = time.monotonic() - started
    if status.split()[-1] != "ACTIVE":
        sys.exit(f"the server is not ACTIVE: {status}")
    steps: dict[str, float] = defaultdict(float)
    for match in STEP.finditer(output):
        steps[match["title"]] = max(steps[match["title"]], float(match["seconds"]))
    return up, active, steps


def memory(state: Path) -> dict[str, float]:
    """MiB of PSS by kind of process, of all processes of the lab in *state*."""
    kinds: dict[str, float] = defaultdict(float)
    for process in processes.marked(state):
        command = " ".join(process.cmdline())
        kind = next(
            (
                kind
                for word, kind in (
                    ("launch.py", "launchers"),
                    ("mariadbd", "MariaDB"),
                    ("beam.smp", "RabbitMQ"),
                    ("haproxy", "HAProxy"),
                    ("supervisord", "supervisors"),
                    ("sshd", "ssh"),
                    ("fork server", "fork servers of OpenStack"),
                )
                if word in command
            ),
            "OpenStack",
        )
        kinds[kind] += process.memory_full_info().pss / 2**20
    return kinds


def main() -> None:
    """Measure, and print tables in org-mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=1, help="of cold and warm (default: 1)")
    rounds = parser.parse_args().rounds
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{today}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the run\n")
    print(
        "|      | up (s) | first cross-instance ACTIVE (s) | of cold | steps (slowest instance) |"
    )
    print(
        "|------+--------+---------------------------------+---------+--------------------------|"
    )
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="up-") as temporary:
            directory = Path(temporary)
            clone(directory)
            try:
                cold = first_server(directory, "cold")
                used = memory(directory / ".lab")
                run(directory, "halt")
                warm = first_server(directory, "warm")
            finally:
                run(directory, "destroy")
        for name, (up, active, steps) in (("cold", cold), ("warm", warm)):
            shown = ", ".join(f"{title} {seconds:.1f}" for title, seconds in steps.items())
            print(f"| {name} | {up:.1f} | {active:.1f} | {active / cold[1]:.2f} | {shown} |")
    print("\n| memory (PSS) | MiB per instance |")
    print("|--------------+------------------|")
    for kind, mebibytes in sorted(used.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {mebibytes / 2:.0f} |")
    print(f"| together | {sum(used.values()) / 2:.0f} |")


if __name__ == "__main__":
    main()
