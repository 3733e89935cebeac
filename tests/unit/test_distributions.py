"""What each of the two distributions ships."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def shipped(source: Path, out: Path) -> tuple[set[str], str]:
    """The packages in the wheel of *source*, and its entry points."""
    uv = Path(sys.executable).with_name("uv")
    constraints = str(ROOT / "constraints.txt")
    build = [str(uv), "build", "--quiet", "--wheel", "--build-constraints", constraints]
    subprocess.run([*build, "--out-dir", str(out), str(source)], check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
        return packages, archive.read(entry_points).decode()


def test_a_cloud_gets_nothing_of_the_lab(tmp_path: Path) -> None:
    packages, entry_points = shipped(ROOT, tmp_path)
    assert packages == {"openstackoid"}
    assert "neutron" not in entry_points
    assert "openstack.cli.base" in entry_points


def test_the_lab_is_a_distribution_of_its_own(tmp_path: Path) -> None:
    packages, entry_points = shipped(ROOT / "lab", tmp_path)
    assert packages == {"lab"}
    assert "neutron.ml2.mechanism_drivers" in entry_points
