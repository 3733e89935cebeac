"""A testinfra host for every instance of the lab, through the provider's ssh_config."""

from __future__ import annotations

from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

from lab.config import Instance, load
from tests.conftest import ROOT, RunningLab

NAMES = load(ROOT).names


@pytest.fixture(params=NAMES)
def instance(lab: RunningLab, request: pytest.FixtureRequest) -> Instance:
    return lab.config.instance(request.param)


@pytest.fixture
def host(lab: RunningLab, instance: Instance) -> Host:
    return testinfra.get_host(f"ssh://{instance.name}", ssh_config=str(lab.ssh_config))


@pytest.fixture
def directory(lab: RunningLab, instance: Instance) -> Path:
    """The instance's own directory on its host."""
    return lab.host(instance.name).directory
