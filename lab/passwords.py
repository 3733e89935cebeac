"""The generated passwords of the instances: each has its own, and none is chosen by a person."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable

from lab.description import Lab


def passwords(lab: Lab, name: str, accounts: Iterable[str]) -> dict[str, str]:
    """The passwords of the instance *name* for *accounts*; made when first asked for, then kept."""
    path = lab.state / "secrets" / f"{name}.json"
    known: dict[str, str] = {}
    if path.exists():
        known = json.loads(path.read_text())
    missing = [account for account in accounts if account not in known]
    if not missing:
        return known
    known |= {account: secrets.token_hex(16) for account in missing}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(known, stream)
    draft.replace(path)
    return known
