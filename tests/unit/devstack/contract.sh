#!/bin/bash
#
# The functions that a DevStack plugin may call, and the variables that stack.sh sets. Commands that would change
# the machine are only recorded in $CALLS, one per line; configuration files are real ones below $ROOT.

# shellcheck disable=SC2034 # The plugin reads these variables.

set -o errexit

SERVICE_HOST=${SERVICE_HOST:-192.168.56.11}
HOST_IP=$SERVICE_HOST
REGION_NAME=${REGION_NAME:-InstanceOne}
REGIONS=${REGIONS:-$REGION_NAME}
ENABLED_SERVICES=${ENABLED_SERVICES:-key,n-api,n-cpu,n-cond,n-sch,n-api-meta,placement-api,placement-client,g-api,q-svc,mysql}
DISABLED_SERVICES=${DISABLED_SERVICES:-}
STACK_USER=$(id -un)
SERVICE_TIMEOUT=60
NOVA_NUM_CELLS=${NOVA_NUM_CELLS:-1}
GLOBAL_VENV=True
DEVSTACK_VENV=$ROOT/venv
APACHE_NAME=apache2
APACHE_SETTINGS_DIR=$ROOT/apache
OPENSTACKOID_CONF_DIR=${OPENSTACKOID_CONF_DIR:-$ROOT/openstackoid}
KEYSTONE_CONF=$ROOT/keystone.conf
NOVA_CONF=$ROOT/nova.conf
GLANCE_API_CONF=$ROOT/glance-api.conf
NEUTRON_CONF=$ROOT/neutron.conf
PLACEMENT_CONF=$ROOT/placement.conf
CINDER_CONF=$ROOT/cinder.conf
# lib/keystone sets these before it knows of any plugin.
KEYSTONE_SERVICE_URI=http://$SERVICE_HOST/identity
KEYSTONE_SERVICE_URI_V3=$KEYSTONE_SERVICE_URI/v3
KEYSTONE_AUTH_URI=$KEYSTONE_SERVICE_URI
KEYSTONE_AUTH_URI_V3=$KEYSTONE_SERVICE_URI/v3

function write_down {
    echo "$*" >> "$CALLS"
}

function sudo {
    case "$1" in
        systemctl) write_down "$@" ;;
        *) command "$@" ;;
    esac
}

for name in async_wait echo_summary enable_apache_mod install_package pip_install reload_service run_process \
    stop_process stop_service wait_for_service; do
    eval "function $name { write_down $name \"\$@\"; }"
done

function pip_uninstall {
    write_down pip_uninstall "$@" from "${PIP_VIRTUAL_ENV:-the system}"
}

function is_package_installed {
    [[ " ${PACKAGES:-} " == *" $1 "* ]]
}

function openstack {
    write_down openstack "$@"
    case "$*" in
        *"endpoint list"*"Service Type"*) cat "$ROOT/catalog" ;;
        *"endpoint list"*) cat "$ROOT/endpoints" ;;
        *"region list"*) tr ' ' '\n' <<< "$REGIONS" ;;
    esac
}

function die {
    shift
    echo "ERROR: $*" >&2
    exit 1
}

function get_python_exec_prefix {
    echo "$BIN"
}

function conductor_conf {
    echo "$ROOT/nova_cell$1.conf"
}

function enable_service {
    if [[ ",$DISABLED_SERVICES," != *",$1,"* ]]; then
        ENABLED_SERVICES+=",$1"
    fi
}

function is_service_enabled {
    local service
    for service in "$@"; do
        case "$service" in
            keystone) service=key ;;
            nova) service=n-api ;;
            glance) service=g-api ;;
            neutron) service=q-svc ;;
            placement) service=placement-api ;;
            cinder) service=c-api ;;
        esac
        if [[ ",$ENABLED_SERVICES," == *",$service,"* ]]; then
            return 0
        fi
    done
    return 1
}

# A section may appear several times: the last value counts, as for any reader of such a file.
function iniset {
    printf '\n[%s]\n%s = %s\n' "$2" "$3" "$4" >> "$1"
}

function inidelete {
    awk -v section="[$2]" -v option="$3" \
        '/^\[/ { inside = ($0 == section) } !(inside && $1 == option)' "$1" > "$1.new"
    mv "$1.new" "$1"
}
