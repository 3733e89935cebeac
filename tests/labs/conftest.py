"""A lab of three instances that seal tokens and speak TLS; one has ports, and little trust."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RunningLab, clone, lab_of

#: InstanceThree's tokens may read images in InstanceTwo, and are no administrator's in InstanceOne.
#: InstanceTwo's tokens may do in InstanceOne what their roles allow, and nothing in InstanceThree.
TRUST = """
trust:
  InstanceOne: {InstanceTwo: {admin: true}, InstanceThree: {}}
  InstanceTwo:
    InstanceOne: {admin: true}
    InstanceThree: {services: [image], methods: [GET, HEAD], roles: [reader]}
  InstanceThree: {InstanceOne: {admin: true}}
"""


@pytest.fixture(scope="package")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab of three instances, of a clone of this repository."""
    repository = clone(tmp_path_factory.mktemp("three"), "127.68.%d.1", "172.28.%d.0/24")
    description = repository / "lab.yaml"
    two = "  - name: InstanceTwo\n"
    three = "  - {name: InstanceThree, endpoints: ports}\n"
    text = description.read_text().replace(two, two + three)
    text = text.replace("sealed: false", "sealed: true").replace("tls: false", "tls: true")
    description.write_text(text.replace("trust: {}", TRUST))
    with lab_of(repository, "--hypervisor", "fake") as lab:
        yield lab
