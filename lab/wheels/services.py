"""Everything that is specific to one OpenStack service: a record for each.

Ports, programs, fork servers, databases, configuration, accounts, the catalog, the start order and
the readiness checks derive from these records. To add a service, add a record here and its
configuration templates. What differs between hypervisors is in :data:`SERVICES` and
:data:`BACKING`, which are keyed by them.

``$words`` in their texts are filled in per instance (:meth:`lab.wheels.layout.Layout.fill`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Hypervisor = Literal["fake", "libvirt"]

#: Requests that one service handles at a time. A request may wait for others that it causes, but
#: those go to other services.
THREADS = 6


@dataclass(frozen=True)
class Command:
    """A management command of a service: *entry* (``module:function``) called as *name*.

    The command is left out where the directory *unless* (below the instance's ``etc``) has files.
    """

    entry: str
    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    unless: str = ""


@dataclass(frozen=True)
class Database:
    """A database, and the *section* of the service's configuration that names it, if one does."""

    name: str
    section: str = ""


@dataclass(frozen=True)
class Worker:
    """A program of a service that has no HTTP API: *entry* (``module:function``) called as *name*.

    It is ready when it consumes the queue *queue*, if it has one, and the SQL query *counts* on the
    database *database* counts something. It starts after the programs *after* are ready.
    *environment* comes on top of its service's.
    """

    name: str
    entry: str
    queue: str = ""
    after: tuple[str, ...] = ()
    database: str = ""
    counts: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    #: The file below the instance's ``etc`` that it reads instead of its service's.
    configuration: str = ""


@dataclass(frozen=True)
class Service:
    """One OpenStack service with an HTTP API.

    *type*, *prefix* and *version* make its URL in the catalog; *port* is its own. *program* is the
    name of its API under supervisor, *module* the WSGI module. *imports* are what its fork server
    imports: entry points, and drivers that are loaded by name. *configuration* are files below the
    instance's ``etc``, each rendered from the template of its name; the first is the one that the
    commands read. *shipped* are files of the distribution that the service wants beside its
    configuration; *empty* are files that have to exist; *directories* too.
    """

    name: str
    type: str
    prefix: str
    port: int
    program: str
    module: str
    imports: tuple[str, ...]
    configuration: tuple[str, ...]
    databases: tuple[Database, ...]
    #: Build or migrate the schema, one after another.
    sync: tuple[Command, ...]
    #: Follow in a new database; each fails when it is repeated.
    first_sync: tuple[Command, ...] = ()
    #: Run before the service starts for the first time.
    bootstrap: tuple[Command, ...] = ()
    #: Run when the instance's resources have been created.
    finish: tuple[Command, ...] = ()
    version: str = ""
    workers: tuple[Worker, ...] = ()
    #: The command line of its API, for a WSGI module that reads one.
    arguments: tuple[str, ...] = ()
    #: Variables that tell its programs where their configuration is.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Variables that have to be set before the imports, too.
    switches: Mapping[str, str] = field(default_factory=dict)
    #: A module whose ``patch(backend="threading")`` has to run before the other imports.
    patch: str = ""
    #: Called (``module:function``) before the API serves.
    warm_up: str = ""
    threads: int = THREADS
    shipped: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    #: Whether the service logs in to keystone with an account of its own name.
    account: bool = True
    #: The roles of its account in the project ``service``.
    roles: tuple[str, ...] = ("service",)
    #: The name of its fork server, where that is not its own name.
    kind: str = ""

    @property
    def fork_server(self) -> str:
        """The name of the fork server that has imported it."""
        return self.kind or self.name

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of its programs under supervisor."""
        return (self.program, *(worker.name for worker in self.workers))


def _nova(*arguments: str) -> Command:
    return Command("nova.cmd.manage:main", "nova-manage", arguments)


def _keystone(
    *arguments: str, environment: Mapping[str, str] | None = None, unless: str = ""
) -> Command:
    entry, name = "keystone.cmd.manage:main", "keystone-manage"
    return Command(entry, name, arguments, environment or {}, unless)


_OWNER = ("--keystone-user=$uid", "--keystone-group=$gid")

# Nova keeps the URLs of its cells in a table. In this form it fills in what stands in the nova.conf
# of whoever reads it, so that the table can be copied.
# https://docs.openstack.org/nova/latest/admin/cells.html#template-urls-in-cell-mappings
_CELL = "{scheme}://{username}:{password}@{hostname}:{port}"

# The scheduler chooses a compute that has reported in the last 60 s (nova's service_down_time).
_COMPUTE_IS_UP = (
    "SELECT COUNT(*) FROM services s JOIN compute_nodes n ON s.host = n.host"
    " WHERE s.`binary` = 'nova-compute' AND s.deleted = 0 AND n.deleted = 0"
    " AND COALESCE(s.last_seen_up, s.created_at) > UTC_TIMESTAMP() - INTERVAL 50 SECOND"
)

_KEYSTONE = Service(
    name="keystone",
    type="identity",
    prefix="/identity",
    version="/v3",
    port=5000,
    program="keystone",
    module="keystone.wsgi.api",
    imports=("keystone.server.wsgi", "keystone.cmd.manage"),
    environment={"OS_KEYSTONE_CONFIG_FILES": "$etc/keystone/keystone.conf"},
    configuration=("keystone/keystone.conf",),
    directories=("etc/keystone/fernet-keys", "etc/keystone/credential-keys"),
    # Its middleware keeps a request's token where the next request puts its own
    # (AuthContextMiddleware.token): of two at a time, one gets the other's roles.
    threads=1,
    databases=(Database("keystone", "database"),),
    sync=(_keystone("db_sync"),),
    bootstrap=(
        _keystone("fernet_setup", *_OWNER, unless="keystone/fernet-keys"),
        _keystone("credential_setup", *_OWNER, unless="keystone/credential-keys"),
        _keystone(
            "bootstrap",
            "--bootstrap-region-id=$name",
            "--bootstrap-public-url=$endpoint",
            environment={"OS_BOOTSTRAP_PASSWORD": "$password"},
        ),
    ),
    account=False,
)

_GLANCE = Service(
    name="glance",
    type="image",
    prefix="/image",
    port=9292,
    program="glance-api",
    module="glance.wsgi.api",
    imports=(
        "glance.common.wsgi_app",
        "glance.cmd.manage",
        "glance.api.v2.router",
        "glance_store._drivers.filesystem",
        "keystonemiddleware.auth_token",
        "keystoneauth1.loading",
    ),
    environment={"OS_GLANCE_CONFIG_DIR": "$etc/glance"},
    configuration=("glance/glance-api.conf",),
    shipped=("etc/glance/glance-api-paste.ini",),
    empty=("etc/glance/glance-image-import.conf",),
    directories=("data/images",),
    databases=(Database("glance", "database"),),
    sync=(Command("glance.cmd.manage:main", "glance-manage", ("db", "sync")),),
)

_NOVA = Service(
    name="nova",
    type="compute",
    prefix="/compute",
    version="/v2.1",
    port=8774,
    program="nova-api",
    module="nova.wsgi.osapi_compute",
    imports=(
        "nova.api.openstack.wsgi_app",
        "nova.api.openstack.compute",
        "nova.api.openstack.urlmap",
        "nova.cmd.manage",
        "nova.cmd.conductor",
        "nova.cmd.scheduler",
        "nova.cmd.compute",
        "nova.conductor.manager",
        "nova.scheduler.manager",
        "nova.compute.manager",
        "nova.virt.fake",
        "nova.network.neutron",
        "nova.image.glance",
        "keystonemiddleware.auth_token",
        "oslo_messaging._drivers.impl_rabbit",
    ),
    # Without the switch, each of its programs would patch or poison eventlet upon its import.
    patch="nova.monkey_patch",
    switches={"OS_NOVA_DISABLE_EVENTLET_PATCHING": "1"},
    environment={"OS_NOVA_CONFIG_DIR": "$etc/nova"},
    configuration=("nova/nova.conf",),
    shipped=("etc/nova/api-paste.ini",),
    directories=("data/nova/instances",),
    databases=(
        Database("nova_api", "api_database"),
        Database("nova_cell0"),
        Database("nova", "database"),
    ),
    sync=(
        _nova("api_db", "sync"),
        _nova(
            "cell_v2",
            "map_cell0",
            "--database_connection",
            f"{_CELL}/nova_cell0?{{query}}",
        ),
        _nova("db", "sync"),
    ),
    first_sync=(
        _nova(
            "cell_v2",
            "create_cell",
            "--name=cell1",
            f"--database_connection={_CELL}/{{path}}?{{query}}",
            f"--transport-url={_CELL}/{{path}}",
        ),
    ),
    finish=(_nova("cell_v2", "discover_hosts"),),
    workers=(
        Worker("nova-conductor", "nova.cmd.conductor:main", "conductor"),
        Worker("nova-scheduler", "nova.cmd.scheduler:main", "scheduler"),
        Worker(
            "nova-compute",
            "nova.cmd.compute:main",
            "compute.$name",
            # A call to a conductor that does not listen yet is lost, and repeated after 10 s.
            after=("placement", "nova-conductor"),
            database="nova",
            counts=_COMPUTE_IS_UP,
        ),
    ),
)

_PLACEMENT = Service(
    name="placement",
    type="placement",
    prefix="/placement",
    port=8778,
    program="placement",
    module="placement.wsgi.api",
    imports=("placement.wsgi", "placement.cmd.manage", "keystonemiddleware.auth_token"),
    environment={"OS_PLACEMENT_CONFIG_DIR": "$etc/placement"},
    configuration=("placement/placement.conf",),
    databases=(Database("placement", "placement_database"),),
    sync=(Command("placement.cmd.manage:main", "placement-manage", ("db", "sync")),),
)

_NEUTRON = Service(
    name="neutron",
    type="network",
    prefix="/networking",
    port=9696,
    program="neutron-api",
    module="neutron.wsgi.api",
    imports=(
        "neutron.server.api",
        "neutron.db.migration.cli",
        "neutron.plugins.ml2.plugin",
        "keystonemiddleware.auth_token",
        "oslo_messaging._drivers.impl_rabbit",
    ),
    environment={
        "OS_NEUTRON_CONFIG_DIR": "$etc/neutron",
        "OS_NEUTRON_CONFIG_FILES": "neutron.conf;ml2_conf.ini",
    },
    warm_up="lab.wheels.wsgi:load_policies_of_neutron",
    configuration=("neutron/neutron.conf", "neutron/ml2_conf.ini"),
    shipped=("etc/neutron/api-paste.ini",),
    directories=("data/neutron",),
    databases=(Database("neutron", "database"),),
    sync=(Command("neutron.db.migration.cli:main", "neutron-db-manage", ("upgrade", "heads")),),
)

# What lives in the network namespace of the instance (lab.wheels.namespaced).
_INSIDE = {
    "OPENSTACKOID_INSTANCE": "$name",
    "OPENSTACKOID_NAMESPACE": "$namespace",
    "OPENSTACKOID_OVERLAY": "$etc/overlay",
}

_NOVA_WITH_LIBVIRT = replace(
    _NOVA,
    kind="nova-libvirt",
    imports=(
        *_NOVA.imports,
        "lab.wheels.namespaced",
        "nova.console.websocketproxy",
        "nova.virt.libvirt.driver",
        "vif_plug_ovs.ovs",
    ),
    workers=(
        *(
            replace(
                worker,
                entry="lab.wheels.namespaced:compute",
                after=(*worker.after, "neutron-api"),
                environment={
                    **_INSIDE,
                    "OVS_RUNDIR": "$run/ovn",
                    # libvirt takes the first QEMU there.
                    "PATH": "$emulator:/usr/sbin:/usr/bin:/sbin:/bin",
                },
                configuration="nova/nova-compute.conf",
            )
            if worker.name == "nova-compute"
            else worker
            for worker in _NOVA.workers
        ),
        Worker("nova-serialproxy", "lab.wheels.namespaced:serial_proxy", environment=_INSIDE),
    ),
)

_NEUTRON_WITH_OVN = replace(
    _NEUTRON,
    kind="neutron-ovn",
    imports=(
        *_NEUTRON.imports,
        "neutron.plugins.ml2.drivers.ovn.mech_driver.mech_driver",
        "neutron.services.ovn_l3.plugin",
    ),
    environment={
        **_NEUTRON.environment,
        # Neutron asks its web server for the number of workers (neutron.common.wsgi_utils).
        "ASGI_WORKERS": "1",
        # It elects its first worker by a file that is named by the parent, here the fork server.
        "TMPDIR": "$run/neutron",
    },
    # Neutron tells nova that a port is ready. Nova takes that from the role service, and then looks
    # for the server among those of neutron's own project (server_external_events.py).
    roles=("service", "admin"),
)

#: The services of an instance, by its hypervisor.
SERVICES: Mapping[Hypervisor, tuple[Service, ...]] = {
    "fake": (_KEYSTONE, _GLANCE, _NOVA, _PLACEMENT, _NEUTRON),
    "libvirt": (_KEYSTONE, _GLANCE, _NOVA_WITH_LIBVIRT, _PLACEMENT, _NEUTRON_WITH_OVN),
}

#: The programs that the services need, in the order in which they start, by the hypervisor.
BACKING: Mapping[Hypervisor, tuple[str, ...]] = {
    "fake": ("mariadb", "epmd", "rabbitmq", "haproxy"),
    "libvirt": (
        *("mariadb", "epmd", "rabbitmq", "haproxy"),
        *("ovsdb-server", "ovs-vswitchd", "ovn-northd", "ovn-controller", "guest-logs"),
    ),
}


def program_names(hypervisor: Hypervisor) -> tuple[str, ...]:
    """All programs of an instance with *hypervisor*, in the order in which they start."""
    services = SERVICES[hypervisor]
    return (*BACKING[hypervisor], *(name for service in services for name in service.programs))
