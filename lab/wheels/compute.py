"""The entry of nova-compute with libvirt: vanilla, in the network namespace of its instance.

It is called like the instance, since a hypervisor's name is the name of its host.
"""

from __future__ import annotations

import os
from pathlib import Path

from lab.wheels import netns


def main() -> None:
    """Enter the namespace ``OPENSTACKOID_NAMESPACE``, then be nova-compute; never returns.

    It is root already, so that it needs no daemon for what root may do (oslo.privsep): 80 MB less.
    """
    overlay = Path(os.environ["OPENSTACKOID_OVERLAY"])
    netns.enter(os.environ["OPENSTACKOID_NAMESPACE"], os.environ["OPENSTACKOID_INSTANCE"], overlay)

    import nova.cmd.compute  # noqa: PLC0415 - of nova's fork server only
    import nova.privsep  # noqa: PLC0415
    import vif_plug_ovs.privsep  # noqa: PLC0415

    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    vif_plug_ovs.privsep.vif_plug.set_client_mode(False)
    nova.cmd.compute.main()
