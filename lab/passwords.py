"""The generated passwords of the instances; each instance has its own."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable

from lab import files
from lab.config import Lab


def passwords(lab: Lab, name: str, accounts: Iterable[str]) -> dict[str, str]:
    """The passwords of the instance *name* for *accounts*; made on first use, then kept."""
    path = lab.state / "secrets" / f"{name}.json"
    known: dict[str, str] = {}
    if path.exists():
        known = json.loads(path.read_text())
    missing = [account for account in accounts if account not in known]
    if not missing:
        return known
    known |= {account: secrets.token_hex(16) for account in missing}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write(path, json.dumps(known))
    return known
