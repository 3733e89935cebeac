"""Write files atomically; hosts use this module too, so it needs only the standard library."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str, mode: int = 0o600) -> bool:
    """Write *text* with *mode* to the file *path*, atomically; return whether that changed it.

    :raises OSError: when it cannot be written; the former file then stays.
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
