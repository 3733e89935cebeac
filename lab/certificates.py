"""The certificates of the instances' proxies, for each other and for clients."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from lab import files
from lab.config import Lab

# Instances come up at the same time, and there is one authority.
_LOCK = threading.Lock()


def authority_file(lab: Lab) -> Path:
    """Where the lab's authority is, once there is a certificate."""
    return lab.state / "secrets" / "tls" / "ca.pem"


def certificates(lab: Lab, name: str) -> Mapping[str, str]:
    """PEM texts for the instance *name*; made on first use, then kept.

    ``certificate`` is its certificate with its chain and its key, ``ca`` the lab's authority.
    """
    import trustme  # noqa: PLC0415 - slow to import, rarely needed

    authority = authority_file(lab)
    address = str(lab.instance(name).address)
    key, own = (authority.with_name(file) for file in ("ca.key", f"{name}-{address}.crt"))
    with _LOCK:
        if not own.exists():
            authority.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not key.exists():
                made = trustme.CA()
                files.write(authority, made.cert_pem.bytes().decode())
                files.write(key, made.private_key_pem.bytes().decode())
            ca = trustme.CA.from_pem(authority.read_bytes(), key.read_bytes())
            leaf = ca.issue_cert(name, address, common_name=name)
            files.write(own, leaf.private_key_and_cert_chain_pem.bytes().decode())
    return {"certificate": own.read_text(), "ca": authority.read_text()}
