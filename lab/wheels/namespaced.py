"""The entries of vanilla programs that live in the network namespace of their instance.

They are called like the instance, since a hypervisor's name is the name of its host.
"""

from __future__ import annotations

import os
from pathlib import Path

from lab.wheels import netns


def compute() -> None:
    """Be nova-compute with libvirt; never returns.

    It is root already, so that it needs no daemon for what root may do (oslo.privsep): 80 MB less.
    """
    _enter()

    import nova.cmd.compute  # noqa: PLC0415 - of nova's fork server only
    import nova.privsep  # noqa: PLC0415
    import vif_plug_ovs.privsep  # noqa: PLC0415

    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    vif_plug_ovs.privsep.vif_plug.set_client_mode(False)
    nova.cmd.compute.main()


def serial_proxy() -> None:
    """Be nova-serialproxy, which connects WebSockets with guests' serial ports; never returns."""
    _enter()

    import nova.cmd.serialproxy  # noqa: PLC0415 - of nova's fork server only

    nova.cmd.serialproxy.main()


def _enter() -> None:
    """Enter the namespace that the environment names."""
    overlay = Path(os.environ["OPENSTACKOID_OVERLAY"])
    netns.enter(os.environ["OPENSTACKOID_NAMESPACE"], os.environ["OPENSTACKOID_INSTANCE"], overlay)
