"""Measure a command over several instances: its time beside that of one instance.

``python benchmarks/everywhere.py`` needs a running lab. It times ``openstack server list`` without
a scope and with ``--scope compute=*``, which asks all instances of the lab, in turn. The ratio is
the median of the rounds' ratios. ``./setup-env.py up -n 10 --hypervisor fake`` makes ten instances.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lab.config import load

ROOT = Path(__file__).resolve().parents[1]
ONE = ["openstack", "server", "list"]
ALL = [*ONE, "--scope", "compute=*"]


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """How long *command* takes."""
    began = time.monotonic()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def main() -> None:
    """Print each round's times, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of both commands")
    rounds = parser.parse_args().rounds
    lab = load(ROOT)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OS_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OS_CLIENT_CONFIG_FILE": str(lab.state / "clouds.yaml"),
        "OS_CLOUD": lab.names[0],
    }
    ratios = []
    for number in range(rounds):
        one, all_ = seconds(ONE, environment), seconds(ALL, environment)
        ratios.append(all_ / one)
        print(
            f"round {number + 1}: one instance {one:.2f} s, {len(lab.names)} instances {all_:.2f} s"
        )
    print(f"{len(lab.names)} instances take {statistics.median(ratios):.2f} times as long as one")


if __name__ == "__main__":
    main()
