"""Measure how long a newcomer waits, and how much memory a lab takes.

``python benchmarks/up.py`` copies the repository to a new directory, without ``.venv`` and
``.lab``. One run there measures *cold*, from ``./setup-env.py up`` to the first server made across
instances, and *warm*, the same after ``halt``; first with real guests, then with the fake
hypervisor. A real guest counts when its console shows whose image it booted. Debian's packages must
be present. The lab gets its own addresses, so another lab may run at the same time; but on a busy
machine the times mean little. In between, it adds up the memory of all processes of the lab as PSS
(each page divided by the processes that share it), and divides the sum by the instances.
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

import psutil

from lab import processes
from lab.wheels import netns

ROOT = Path(__file__).resolve().parent.parent
CREATE = (
    "openstack server create {name} --scope image=InstanceTwo --image cirros --flavor m1.nano"
    " --network private --wait -f value -c status"
)
DELETE = "openstack server delete cold --wait"
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
    text = description.read_text().replace("127.0.%d", "127.77.%d")
    description.write_text(text.replace("172.24.%d", "172.27.%d"))


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


def first_server(
    directory: Path, name: str, hypervisor: str
) -> tuple[float, float, float, dict[str, float]]:
    """Seconds until ``up`` ends, a server is ACTIVE, and its prompt shows; each step's longest."""
    started = time.monotonic()
    output = run(directory, "up", "--no-attach", "--hypervisor", hypervisor)
    up = time.monotonic() - started
    status = run(directory, "ssh", "InstanceOne", "--", *shlex.split(CREATE.format(name=name)))
    active = time.monotonic() - started
    if status.split()[-1] != "ACTIVE":
        sys.exit(f"the server is not ACTIVE: {status}")
    shown = hypervisor == "fake"
    log = ("ssh", "InstanceOne", "--", "openstack", "console", "log", "show", name)
    while not shown and time.monotonic() < started + 300:
        shown = "image is from InstanceTwo" in run(directory, *log)
    prompt = time.monotonic() - started
    steps: dict[str, float] = defaultdict(float)
    for match in STEP.finditer(output):
        steps[match["title"]] = max(steps[match["title"]], float(match["seconds"]))
    return up, active, prompt, steps


def memory(state: Path) -> dict[str, float]:
    """MiB of PSS by kind of process, of all processes of the lab in *state*."""
    kinds: dict[str, float] = defaultdict(float)
    of_lab = f"/run/{netns.prefix(state)}"
    guests = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(of_lab in word for word in process.info["cmdline"] or ())
    ]
    for process in (*processes.marked(state), *guests):
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
                    ("qemu-system", "the guest of 192 MiB"),
                    ("ovn-", "Open vSwitch and OVN"),
                    ("ovs", "Open vSwitch and OVN"),
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
    print("| hypervisor | | up (s) | server ACTIVE (s) | at its prompt (s) | slowest steps |")
    print("|-+-+-+-+-+-|")
    used: dict[str, dict[str, float]] = {}
    for hypervisor in ("libvirt", "fake") * rounds:
        with tempfile.TemporaryDirectory(prefix="up-") as temporary:
            directory = Path(temporary)
            clone(directory)
            try:
                cold = first_server(directory, "cold", hypervisor)
                used[hypervisor] = memory(directory / ".lab")
                run(directory, "ssh", "InstanceOne", "--", *shlex.split(DELETE))
                run(directory, "halt")
                warm = first_server(directory, "warm", hypervisor)
            finally:
                run(directory, "destroy")
        for name, (up, active, prompt, steps) in (("cold", cold), ("warm", warm)):
            shown = ", ".join(f"{title} {seconds:.1f}" for title, seconds in steps.items())
            print(f"| {hypervisor} | {name} | {up:.1f} | {active:.1f} | {prompt:.1f} | {shown} |")
    print("\n| memory (PSS) | libvirt | fake | MiB per instance; the guest is one in all")
    print("|-+-+-|")
    for kind in sorted(used["libvirt"], key=lambda kind: -used["libvirt"][kind]):
        share = 1 if "guest" in kind else 2
        both = (used[hypervisor].get(kind, 0) / share for hypervisor in ("libvirt", "fake"))
        print(f"| {kind} | {' | '.join(f'{value:.0f}' for value in both)} |")
    sums = (
        sum(value for kind, value in used[hypervisor].items() if "guest" not in kind) / 2
        for hypervisor in ("libvirt", "fake")
    )
    print(f"| together, without the guest | {' | '.join(f'{value:.0f}' for value in sums)} |")


if __name__ == "__main__":
    main()
