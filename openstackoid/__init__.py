"""OpenStackoïd: scopes that let independent OpenStacks collaborate.

``openstackoid.connect`` and ``openstackoid.everywhere`` are for programs that use openstacksdk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openstackoid.sdk import connect, everywhere

__all__ = ["connect", "everywhere"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # openstacksdk is slow to import, and the plugin of the `openstack` command needs none of this.
    from openstackoid import sdk  # noqa: PLC0415

    return getattr(sdk, name)
