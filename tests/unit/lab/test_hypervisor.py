"""Which hypervisor a lab gets, and what is said where it cannot be had; nothing is started."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.config import Choices, Lab, load
from lab.errors import LabError
from lab.lifecycle import Lifecycle
from lab.providers.base import Needs
from lab.providers.local import lacking_memory
from lab.stacks.wheels import Wheels
from lab.wheels import guests, netns
from tests.conftest import ROOT


@pytest.fixture
def root() -> Iterator[Path]:
    # Not pytest's tmp_path, which may be too long for sockets.
    with tempfile.TemporaryDirectory(prefix="oid-", dir="/tmp") as directory:
        shutil.copy(ROOT / "lab.yaml", directory)
        yield Path(directory)


def decide(_: str | None) -> tuple[str, str]:
    raise AssertionError("the provider is chosen already")


def lab(root: Path, hypervisor: str | None = None) -> Lab:
    return load(root, Choices.model_validate({"provider": "local", "hypervisor": hypervisor}))


def test_without_root_guests_are_fake_and_the_reason_is_given(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    name, why = Wheels.hypervisor(lab(root), is_here=True)
    assert (name, "root" in why) == ("fake", True)
    with pytest.raises(LabError, match=r"the hypervisor libvirt cannot be had: .*root"):
        Wheels.hypervisor(lab(root, "libvirt"), is_here=True)


def test_on_machines_guests_are_real_only_if_chosen(root: Path) -> None:
    name, why = Wheels.hypervisor(lab(root), is_here=False)
    assert (name, "only with hypervisor: libvirt" in why) == ("fake", True)
    assert Wheels.hypervisor(lab(root, "libvirt"), is_here=False) == ("libvirt", "as chosen")


def test_a_lab_may_ask_for_the_fake_hypervisor(root: Path) -> None:
    assert Wheels.hypervisor(lab(root, "fake"), is_here=True)[0] == "fake"


def test_only_real_guests_need_their_packages(root: Path) -> None:
    def packages(hypervisor: str) -> tuple[str, ...]:
        return Wheels(lab(root, hypervisor), lambda _: pytest.fail("connects")).needs.packages

    assert set(packages("fake")) < set(packages("libvirt"))
    assert "qemu-system-x86" in packages("libvirt")


def test_a_lab_that_an_earlier_version_made_keeps_the_fake_hypervisor(root: Path) -> None:
    Choices(provider="local", stack="wheels").keep(root / ".lab")
    assert Lifecycle.of(root, decide=decide).lab.hypervisor == "fake"
    with pytest.raises(LabError, match=r"the lab has the hypervisor fake: run .* destroy"):
        Lifecycle.of(root, Choices(hypervisor="libvirt"), decide)


def test_every_instance_has_an_external_range_of_its_own(root: Path) -> None:
    choices = Choices(number=3, provider="local")
    ranges = [str(one.public) for one in load(root, choices).instances]
    assert ranges == ["172.24.1.0/24", "172.24.2.0/24", "172.24.3.0/24"]


def test_who_is_not_root_removes_a_lab_without_looking_for_guests(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(netns, "run", lambda *_, **__: pytest.fail("runs what needs root"))
    guests.remove(root / ".lab")


def test_instances_that_do_not_fit_into_the_memory_are_named_before_they_start() -> None:
    assert lacking_memory(2, Needs(memory=1)) == ""
    assert "and the instances that are not up take 2000000000:" in lacking_memory(
        2, Needs(memory=10**9)
    )
