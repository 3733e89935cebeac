#!/bin/bash
# What stack.sh runs last where nova's compute is a fake one. Written by ./setup-env.py up.

# DevStack calls that compute by the host's name and a 1 (lib/nova:start_nova_compute), and OVN's chassis by
# the host's name (lib/neutron_plugins/ovn_agent:_start_ovs): a port would find no host. Debian's Open
# vSwitch would take that name again whenever the machine starts.
sudo systemctl disable ovs-record-hostname
sudo ovs-vsctl set open_vswitch . external-ids:hostname="$(hostname)1"
