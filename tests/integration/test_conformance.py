"""A short selection of Tempest's tests ends the same with and without a scope."""

from __future__ import annotations

import json
import re

from tests.conftest import RunningLab
from tests.integration.conftest import Shell

#: Fewer are not worth the name.
LEAST = 80


def test_tempest_ends_the_same_with_a_scope_and_leaves_nothing(
    lab: RunningLab, one: Shell, two: Shell
) -> None:
    command = ["conformance", "--short", "--scope", "image=InstanceTwo", "--json"]
    done = lab.setup_env(*command, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout) == {"differences": []}
    counts = re.findall(r"(\d+) passed, (\d+) failed", done.stderr)
    assert len(counts) == 2
    assert all(int(passed) > LEAST and failed == "0" for passed, failed in counts)
    for shell in (one, two):
        for line in ("project list", "user list", "network list", "image list"):
            names = [row["Name"] for row in shell.json(line)]
            assert [name for name in names if name.startswith("tempest")] == []
