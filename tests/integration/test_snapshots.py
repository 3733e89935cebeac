"""A lab returns to a snapshot, with all that its services keep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RunningLab
from tests.integration.conftest import Shell

NAME = "test-snapshot"
CREATE = "--image cirros --flavor m1.nano --network private --wait"


@pytest.fixture
def snapshot(lab: RunningLab, one: Shell) -> Iterator[str]:
    """A snapshot of the lab with the server ``test-before`` in InstanceOne."""
    server = one.json(f"server create test-before {CREATE}")
    try:
        lab.setup_env("snapshot", NAME)
        yield NAME
    finally:
        lab.setup_env("snapshot", "--delete", NAME, check=False)
        one.openstack(f"server delete {server['id']} --wait")


def test_what_was_made_after_a_snapshot_is_gone_after_the_restore(
    lab: RunningLab, one: Shell, two: Shell, snapshot: str
) -> None:
    images = two.json("image list")
    one.openstack(f"server create test-after {CREATE}")
    two.run("sh", "-c", "head -c 1M /dev/zero > image")
    two.openstack("image create test-after --file image")

    lab.setup_env("restore", snapshot)

    servers = {row["Name"]: row["Status"] for row in one.json("server list")}
    assert servers.get("test-before") == "ACTIVE"
    assert "test-after" not in servers
    assert two.json("image list") == images
    assert "image" not in two.run("ls").split()
    across = "server create test-across --scope image=InstanceTwo"
    server = one.json(f"{across} {CREATE}")
    assert server["status"] == "ACTIVE"
    one.openstack(f"server delete {server['id']} --wait")
