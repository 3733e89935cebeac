"""Files that are whole or not there; the standard library only, as hosts use it too."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str, mode: int = 0o600) -> bool:
    """Have the file *path* hold *text* with *mode*, whole or not at all; whether that changed it.

    :raises OSError: when it cannot be written; what was there before stays.
    """
    content = text.encode()
    if path.exists() and path.read_bytes() == content and path.stat().st_mode & 0o777 == mode:
        return False
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(draft, flags, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    draft.replace(path)
    return True
