#!/bin/bash
#
# devstack/plugin.sh
# Call the functions of lib/openstackoid in DevStack's phases

# shellcheck source=devstack/lib/openstackoid
source "$OPENSTACKOID_DIR/devstack/lib/openstackoid"

if is_service_enabled openstackoid-proxy; then
    if [[ "$1" == "stack" && "$2" == "pre-install" ]]; then
        echo_summary "Checking the settings of OpenStackoïd"
        check_openstackoid
    elif [[ "$1" == "stack" && "$2" == "install" ]]; then
        echo_summary "Installing OpenStackoïd"
        install_openstackoid
        # DevStack has configured keystone and starts it next: all its requests go through the proxy.
        configure_openstackoid
        start_openstackoid
    elif [[ "$1" == "stack" && "$2" == "post-config" ]]; then
        echo_summary "Pointing the services at OpenStackoïd's proxy"
        configure_openstackoid_services
        register_openstackoid_endpoints
    elif [[ "$1" == "stack" && "$2" == "extra" ]]; then
        # Other plugins may have registered endpoints in the meantime.
        register_openstackoid_endpoints
        register_openstackoid_regions
    elif [[ "$1" == "unstack" ]]; then
        stop_openstackoid
    elif [[ "$1" == "clean" ]]; then
        cleanup_openstackoid
    fi
fi
