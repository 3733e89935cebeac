"""Files that are written atomically."""

from __future__ import annotations

from pathlib import Path

from lab import files


def test_a_file_is_written_only_if_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert files.write(path, "é\n")
    assert not files.write(path, "é\n")
    assert files.write(path, "é\n", 0o755)
    assert path.stat().st_mode & 0o777 == 0o755
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_damaged_file_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff\x80")
    assert files.write(path, "whole\n")
    assert path.read_text() == "whole\n"
