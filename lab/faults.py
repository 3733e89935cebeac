"""Faults of the links between instances: what they do, and how people write them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

#: What a fault does to each connection of its link (:mod:`lab.wheels.relay`).
Kind = Literal["cut", "hang", "lie", "slow"]

#: Factors of the units, as tc(8) writes them: to seconds, to bits per second, to a probability.
TIMES = {"ms": 0.001, "s": 1.0}
RATES = {"kbit": 1e3, "mbit": 1e6}
SHARES = {"%": 0.01}


def measure(text: str, units: Mapping[str, float]) -> float:
    """The value of *text*, a positive number and one of *units*, such as ``80ms``.

    :raises ValueError: naming the units that there are.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)([a-z%]+)", text.lower())
    if not found or found[2] not in units or not float(found[1]):
        raise ValueError(
            f"{text!r} is not a positive number with one of the units {', '.join(units)}"
        )
    return float(found[1]) * units[found[2]]


@dataclass(frozen=True)
class Fault:
    """What a link does to its connections.

    A slow one has a *delay* of each round trip and its *jitter* in seconds, a *rate* in bits per
    second, or a *loss*, the probability that a piece of data has to be sent again.
    """

    kind: Kind
    delay: float = 0
    jitter: float = 0
    rate: float = 0
    loss: float = 0

    def __str__(self) -> str:
        """As the options of ``net`` write it, without their dashes."""
        if self.kind != "slow":
            return self.kind
        rate = (
            f"{self.rate / 1e6:g}mbit" if self.rate >= RATES["mbit"] else f"{self.rate / 1e3:g}kbit"
        )
        parts = {
            f"delay {self.delay * 1000:g}ms": self.delay,
            f"jitter {self.jitter * 1000:g}ms": self.jitter,
            f"rate {rate}": self.rate,
            f"loss {self.loss * 100:g}%": self.loss,
        }
        return ", ".join(text for text, value in parts.items() if value)

    def to_json(self) -> str:
        """The fault as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Fault:
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))
