"""The two processes of the whole test suite."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lab.suite import OWN_LAB

#: A pytest that prints its arguments, and fails if they hold the text that is formatted in.
STAND_IN = "import sys; print(*sys.argv[1:]); sys.exit(3 * ({!r} in sys.argv))"
OTHERS = [f"--ignore={directory}" for directory in OWN_LAB]


@pytest.mark.parametrize(
    ("failing", "status", "own", "others"),
    [
        ("none", 0, "passed", "passed"),
        (OWN_LAB[0], 3, "FAILED (status 3)", "passed"),
        (OTHERS[0], 3, "passed", "FAILED (status 3)"),
    ],
)
def test_each_test_runs_once_and_a_failure_of_either_process_counts(
    failing: str, status: int, own: str, others: str
) -> None:
    command = [sys.executable, "-c", STAND_IN.format(failing)]
    code = f"import sys; from lab import suite; sys.exit(suite.run({json.dumps(command)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines() == [
        " ".join(OWN_LAB),
        " ".join(OTHERS),
        f"tests in tests/infra and tests/integration: {own}",
        f"all other tests: {others}",
    ]
