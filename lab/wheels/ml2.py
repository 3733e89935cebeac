"""An ML2 mechanism driver for machines without a wire: it binds every port.

Neutron refuses to give a server a port that no mechanism driver binds. The fake hypervisor plugs
nothing, so that any binding is right for it. Interface: ``neutron_lib.plugins.ml2.api``.
"""

from __future__ import annotations

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api


class UnwiredMechanismDriver(api.MechanismDriver):
    """Binds a port to the first segment of its network, as active."""

    def initialize(self) -> None:
        """There is nothing to prepare."""

    @property
    def connectivity(self) -> str:
        """Layer 2, as far as neutron is concerned."""
        return str(portbindings.CONNECTIVITY_L2)

    def bind_port(self, context: api.PortContext) -> None:
        """Bind the port of *context*."""
        for segment in context.segments_to_bind:
            context.set_binding(
                segment[api.ID],
                portbindings.VIF_TYPE_OTHER,
                {portbindings.CAP_PORT_FILTER: False},
                status=constants.PORT_STATUS_ACTIVE,
            )
            return
