"""What a bundle has to have, and when it is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab import bundle
from lab.bootstrap import base_python
from lab.config import load
from lab.errors import LabError
from lab.unbundled import MADE_FOR, Unbundled, kind
from tests.conftest import ROOT


def test_everything_in_a_bundle_has_a_version() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(bundle.requirements(ROOT)) <= set(pinned)


def test_a_bundle_has_a_name_that_tells_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"bundle\.zip: give it a name that ends in \.tar"):
        bundle.write(load(ROOT), (), tmp_path / "bundle.zip", print)


def test_only_a_lab_that_comes_up_offline_has_a_bundle(tmp_path: Path) -> None:
    lab = load(ROOT).model_copy(update={"provider": "vagrant"})
    with pytest.raises(LabError, match="this one has the provider vagrant and the stack wheels"):
        bundle.write(lab, (), tmp_path / "bundle.tar", print)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_for_another_machine_is_refused(tmp_path: Path) -> None:
    unbundled = Unbundled(tmp_path)
    assert not unbundled
    unbundled.directory.mkdir()
    assert unbundled
    with pytest.raises(LabError, match="is not a whole bundle: unpack it again"):
        unbundled.use(base_python())
    theirs = {**kind(base_python()), "machine": "sparc64"}
    (unbundled.directory / MADE_FOR).write_text(json.dumps(theirs))
    with pytest.raises(LabError, match=r"this bundle is for .* sparc64, .*; this machine has "):
        unbundled.use(base_python())
    assert unbundled.apt_environment == {}
