"""A specification of an instance that is never brought up."""

from __future__ import annotations

from pathlib import Path

from lab.wheels.services import Hypervisor
from lab.wheels.spec import ACCOUNTS, Spec


def spec(directory: Path, hypervisor: Hypervisor = "fake") -> Spec:
    """InstanceOne, with everything below *directory*."""
    return Spec(
        name="InstanceOne",
        address="127.0.1.1",
        directory=str(directory / "instance"),
        shared=str(directory / "shared"),
        home=str(directory / "home"),
        peers={},
        issuers=(),
        passwords=dict.fromkeys(ACCOUNTS, "secret"),
        flavors=(),
        networks=(),
        image={},
        token_cache=30,
        hypervisor=hypervisor,
        public={
            "gateway": "172.24.1.1/24",
            "reach_peers": True,
            "reach_outside": True,
            "peers": {},
        },
    )
