"""The description of a lab: ``lab.yaml``, read, checked and frozen."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from lab import files
from lab.errors import LabError
from lab.wheels.services import SERVICES
from lab.wheels.spec import PROXY_PORT, TLS_PORT, Endpoints
from openstackoid.scope import INSTANCE_NAME, is_expression, quoted, read

#: The external network of the n-th instance.
DEFAULT_RANGE = "172.24.%d.0/24"
#: How many instances ``-n`` can make.
NUMBERS = range(1, 100)

#: Chooses a provider: gets Vagrant's provider in lab.yaml, if any; returns the choice and a reason.
Decide = Callable[[str | None], tuple[str, str]]
ProviderName = Literal["auto", "local", "vagrant", "hosts"]
StackName = Literal["wheels", "devstack"]
HypervisorName = Literal["auto", "fake", "libvirt"]

# Fields of Lab that are not keys of lab.yaml.
_OURS = ("root", "state", "because", "hypervisor_because", "policies")
# Other names in the lab's state, beside the instances' directories.
_RESERVED = frozenset({"lab", "dashboard", "shared", "log", "provider", "lock", "choices", "all"})
# A label of RFC 1123, because an instance's name is also a host name.
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
# The target of ssh: an alias in the user's ssh configuration, or [USER@]HOST[:PORT].
_SSH_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*(?::[0-9]{1,5})?")
# A variable of DevStack's local.conf.
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The state contains sockets, whose paths have at most 107 characters (sun_path in unix(7)).
_LONGEST_STATE = 60
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
# "This network" of RFC 1122: no host has an address in it.
_NOWHERE = IPv4Network("0.0.0.0/8")

# A range has room for a router and some floating IPs.
_SMALLEST_RANGE = 29

# Bounds that no machine reaches; memory in MiB.
_Cpus = Annotated[int, Field(ge=1, le=1024)]
_Memory = Annotated[int, Field(ge=256, le=2**24)]
# The services of the stack wheels.
_TYPES = tuple(service.type for service in SERVICES["fake"])
# Nova's columns of flavors are 32-bit integers.
_LARGEST_OF_NOVA = 2**31 - 1


def _instance_name(name: str) -> str:
    if not (INSTANCE_NAME.fullmatch(name) and _HOST_LABEL.fullmatch(name)):
        raise ValueError("an instance's name has at most 63 letters, digits and inner hyphens")
    if name.lower() in _RESERVED:
        raise ValueError(f"{name!r} is a name that the lab reserves for itself")
    return name


def _scope_name(name: str) -> str:
    if not INSTANCE_NAME.fullmatch(name):
        raise ValueError(
            f"{quoted(name)} is not a name for a scope: it has the form of an instance's name"
        )
    return name


def _scope(services: Mapping[str, str]) -> Mapping[str, str]:
    return dict(sorted(read(json.dumps(dict(services)), dict).items()))


def _host_address(address: IPv4Address) -> IPv4Address:
    # Class E, with the broadcast address, is reserved.
    if address in _NOWHERE or address.is_multicast or address.is_reserved:
        raise ValueError(f"{address} cannot be the address of a host")
    return address


def _ssh_target(target: str) -> str:
    if not _SSH_TARGET.fullmatch(target):
        raise ValueError(f"{target!r} is not a target for ssh: write [USER@]HOST[:PORT]")
    return target


def nth_address(pattern: str, number: int) -> IPv4Address:
    """The address of the instance *number*, from 1: ``%d`` stands for it in *pattern*.

    A pattern without ``%d`` is the address of the first one, and the others follow.

    :raises ValueError: when there is no such address.
    """
    try:
        return IPv4Address(
            pattern % number if "%" in pattern else IPv4Address(pattern) + number - 1
        )
    except TypeError as error:
        raise ValueError(f"{pattern} has more than one %d") from error


def _address_pattern(pattern: str) -> str:
    try:
        nth_address(pattern, 1)
    except ValueError as error:
        raise ValueError(
            f"{pattern!r} is not an address pattern: %d stands for the number of the instance, as "
            "in 127.0.%d.1; without it, this is the first one's address, as in 192.168.56.11"
        ) from error
    return pattern


def _range_pattern(pattern: str) -> str:
    try:
        IPv4Network(pattern % 1)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{pattern!r} is not a pattern of a range: %d stands for the number of the instance, "
            f"as in {DEFAULT_RANGE}"
        ) from error
    return pattern


def _external_range(network: IPv4Network) -> IPv4Network:
    if network.prefixlen > _SMALLEST_RANGE or network.is_loopback or network.is_multicast:
        raise ValueError(f"{network} is not a range for floating IPs: take one like 172.24.1.0/24")
    return network


def _setting_name(name: str) -> str:
    if not _SETTING.fullmatch(name):
        raise ValueError(f"{name!r} is not a variable of DevStack's local.conf")
    return name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Instance(_Part):
    """One OpenStack of the lab: its name (also host name and region) and its address.

    *public* is the range of its external network. *ssh* is the provider ``hosts``'s target for ssh;
    the default is the address. *cpus*, *memory* (MiB) and *box* override the section ``vagrant``
    for this machine.
    """

    name: Annotated[str, AfterValidator(_instance_name)]
    address: Annotated[IPv4Address, AfterValidator(_host_address)]
    ssh: Annotated[str, AfterValidator(_ssh_target)] | None = None
    public: Annotated[IPv4Network, AfterValidator(_external_range)] | None = None
    endpoints: Endpoints = "paths"
    cpus: _Cpus | None = None
    memory: _Memory | None = None
    box: str | None = None


class Addresses(_Part):
    """Per provider, the default address of the n-th instance; see :func:`nth_address`."""

    local: Annotated[str, AfterValidator(_address_pattern)] | None = None
    vagrant: Annotated[str, AfterValidator(_address_pattern)] | None = None


class Public(_Part):
    """The external networks: *range* is that of the n-th instance, ``%d`` stands for n.

    Guests of an instance reach those of its peers, and what the host reaches, unless it is denied.
    """

    range: Annotated[str, AfterValidator(_range_pattern)] = DEFAULT_RANGE
    reach_peers: bool = True
    reach_outside: bool = True


class Machines(_Part):
    """Vagrant's machines; *memory* in MiB. The Vagrantfile also reads this section.

    Without a *provider*, Vagrant chooses one. For ``docker``, *box* is an image. With the *driver*
    ``qemu``, ``libvirt`` emulates the machines: slow, but possible where KVM is not.
    """

    box: Annotated[str, Field(min_length=1)]
    cpus: _Cpus
    memory: _Memory
    provider: Literal["virtualbox", "libvirt", "lxc", "docker"] | None = None
    driver: Literal["kvm", "qemu"] | None = None


class DevStack(_Part):
    """The source of DevStack, and additional *settings* for its ``local.conf``.

    *git_base* is DevStack's GIT_BASE, below which the services' repositories are:
    ``openstack/nova`` …
    """

    repository: str = "https://opendev.org/openstack/devstack"
    branch: str = "master"
    git_base: str = "https://opendev.org"
    settings: Mapping[Annotated[str, AfterValidator(_setting_name)], str | int | bool] = Field(
        default_factory=dict
    )


class Mirrors(_Part):
    """Sources of packages for hosts without Internet access.

    *apt* is Debian's archive (``http://HOST/debian``), *pip* an index (``http://HOST/simple``),
    *proxy* an HTTP proxy for all downloads.
    """

    apt: AnyUrl | None = None
    pip: AnyUrl | None = None
    proxy: AnyUrl | None = None


class Image(_Part):
    """The image that every instance offers; without a URL, a small placeholder."""

    name: Annotated[str, Field(min_length=1)] = "cirros"
    url: AnyUrl | None = None


class Flavor(_Part):
    """A size of servers: *ram* in MiB, *disk* in GiB."""

    name: Annotated[str, Field(min_length=1)]
    vcpus: Annotated[int, Field(ge=1, le=_LARGEST_OF_NOVA)]
    ram: Annotated[int, Field(ge=1, le=_LARGEST_OF_NOVA)]
    disk: Annotated[int, Field(ge=0, le=_LARGEST_OF_NOVA)]


class Network(_Part):
    """A network that every instance offers, with its one subnet."""

    name: Annotated[str, Field(min_length=1)]
    cidr: IPv4Network


class Trust(_Part):
    """What the tokens of an issuer may do; the fields are those of the proxy's ``Policy``."""

    services: tuple[str, ...] | None = None
    methods: tuple[Annotated[str, Field(pattern=r"^[A-Z]+$")], ...] | None = None
    rate: Annotated[int, Field(ge=1)] | None = None
    roles: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], ...] | None = None
    admin: bool = False
    peers: tuple[str, ...] | None = None


class Lab(_Part):
    """A whole lab; *root* is the repository, *state* the directory of all that runs and is kept."""

    root: Path
    state: Path
    provider: ProviderName = "local"
    #: Why it is this provider.
    because: str = ""
    stack: StackName = "wheels"
    #: What runs servers; ``auto`` until the lab is brought up.
    hypervisor: HypervisorName = "auto"
    #: Why it is this hypervisor.
    hypervisor_because: str = ""
    instances: Annotated[tuple[Instance, ...], Field(min_length=1)]
    addresses: Addresses = Addresses()
    vagrant: Machines | None = None
    devstack: DevStack = DevStack()
    mirrors: Mirrors = Mirrors()
    image: Image = Image()
    flavors: tuple[Flavor, ...] = ()
    networks: tuple[Network, ...] = ()
    public: Public = Public()
    trust: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    #: What the tokens of those issuers may do, where ``trust`` has more than names.
    policies: Mapping[str, Mapping[str, Trust]] = Field(default_factory=dict)
    #: Names of scopes: official service types to instances, or to expressions over instances.
    scopes: Mapping[
        Annotated[str, AfterValidator(_scope_name)],
        Annotated[Mapping[str, str], AfterValidator(_scope)],
    ] = Field(default_factory=dict)
    #: Whether each instance and each named scope is a region of the catalogs.
    regions: bool = True
    #: Whether instances send each other sealed tokens.
    sealed: bool = False
    #: Whether the instances' proxies speak TLS with each other.
    tls: bool = False
    #: Whether the instances' proxies take clients by HTTPS, and the catalogs say so.
    https: bool = False
    #: How many seconds a service believes a token that it has validated.
    token_cache: Annotated[int, Field(ge=0, le=3600)] = 30

    @model_validator(mode="after")
    def _consistent(self) -> Lab:
        _refuse_twice("instances", "name", [one.name.lower() for one in self.instances])
        _refuse_twice("instances", "address", [str(one.address) for one in self.instances])
        _refuse_twice("flavors", "name", [one.name for one in self.flavors])
        _refuse_twice("networks", "name", [one.name for one in self.networks])
        for one in self.instances:
            if self.is_here and not one.address.is_loopback:
                raise ValueError(
                    f"instances: {one.name}: {one.address} is not a loopback address: the provider "
                    "local needs 127.x.y.z; for others, choose --provider vagrant or hosts"
                )
        ranges = [
            *((f"instances: {one.name}: public", one.public) for one in self.instances),
            *((f"networks: {one.name}", one.cidr) for one in self.networks),
        ]
        for (where, range_), (other, second) in itertools.combinations(ranges, 2):
            if where.startswith("instances") and range_ and second and range_.overlaps(second):
                raise ValueError(f"{where}: {range_} overlaps {second} of {other}")
        known = self.names
        for key, issuers in self.trust.items():
            for name in (key, *issuers):
                if name not in known:
                    raise ValueError(f"trust: {name!r} is not an instance; known: {_listed(known)}")
        self._check_stack()
        self._check_policies()
        self._check_endpoints()
        self._check_scopes()
        return self

    def _check_stack(self) -> None:
        if self.https and self.stack != "wheels":
            raise ValueError(f"https: the stack {self.stack} does not have this")

    def _check_policies(self) -> None:
        for name, policies in self.policies.items():
            for issuer, policy in policies.items():
                for service in policy.services or ():
                    if self.stack == "wheels" and service not in _TYPES:
                        raise ValueError(
                            f"trust: {name}: {issuer}: the stack wheels has no service of the type "
                            f"{service!r}; known: {_listed(_TYPES)}"
                        )

    def _check_endpoints(self) -> None:
        for one in self.instances:
            if one.endpoints == "ports" and self.stack != "wheels":
                raise ValueError(
                    f"instances: {one.name}: endpoints: the stack {self.stack} has paths only"
                )

    def _check_scopes(self) -> None:
        # Regions differ in more than case: MariaDB, where keystone keeps them, ignores it.
        _refuse_twice("scopes", "name", [name.lower() for name in self.scopes])
        lowered = {name.lower(): name for name in self.names}
        for name, scope in self.scopes.items():
            if name.lower() in lowered:
                raise ValueError(
                    f"scopes: {name!r} is the name of an instance; choose another one for the scope"
                )
            for service, text in scope.items():
                for instance in _instances_in(text):
                    if instance not in self.names:
                        raise ValueError(
                            f"scopes: {name}: {instance!r} is not an instance; known: "
                            f"{_listed(self.names)}"
                        )
                if self.stack == "wheels" and service not in _TYPES:
                    raise ValueError(
                        f"scopes: {name}: the stack wheels has no service of the type {service!r}; "
                        f"known: {_listed(_TYPES)}"
                    )

    @property
    def plain_scopes(self) -> Mapping[str, Mapping[str, str]]:
        """The named scopes without an expression: those that an auth URL can hold."""
        return {
            name: scope
            for name, scope in self.scopes.items()
            if not any(map(is_expression, scope.values()))
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The instances' names, in the order of the description."""
        return tuple(one.name for one in self.instances)

    @property
    def has_guests(self) -> bool:
        """Whether servers are real guests."""
        return self.hypervisor == "libvirt"

    @property
    def is_here(self) -> bool:
        """Whether all instances are on this machine, without machines of their own."""
        return self.provider == "local"

    @property
    def dashboard(self) -> str:
        """The address of the dashboard on this machine.

        On an address of the lab's own, if it has one, it does not meet those of other labs.
        """
        first = self.instances[0].address
        return str(first) if first.is_loopback else "127.0.0.1"

    def instance(self, name: str) -> Instance:
        """The instance called *name*.

        :raises LabError: when there is none; it lists those that there are.
        """
        for one in self.instances:
            if one.name == name:
                return one
        raise LabError(f"unknown instance {name!r}; known: {_listed(self.names)}")

    def peers(self, name: str) -> tuple[Instance, ...]:
        """All instances but *name*.

        :raises LabError: when there is no instance *name*.
        """
        me = self.instance(name)
        return tuple(one for one in self.instances if one is not me)

    def issuers(self, name: str) -> tuple[str, ...]:
        """Whose tokens the instance *name* accepts: its own, and those that it trusts.

        :raises LabError: when there is no instance *name*.
        """
        trusted = {self.instance(name).name, *self.trust.get(name, self.names)}
        return tuple(one for one in self.names if one in trusted)

    def limits(self, name: str) -> Mapping[str, dict[str, Any]]:
        """What the tokens of other instances may do in *name*, by issuer, where ``trust`` says so.

        The values are the fields of the proxy's ``Policy``, besides its issuer.
        """
        return {
            issuer: policy.model_dump(mode="json", exclude_none=True)
            for issuer, policy in self.policies.get(name, {}).items()
            if issuer != name
        }

    def peer_addresses(self, name: str) -> Mapping[str, str]:
        """Where the proxy of *name* reaches those of its peers, ``HOST:PORT`` by instance.

        :raises LabError: when there is no instance *name*.
        """
        port = TLS_PORT if self.tls else PROXY_PORT
        return {peer.name: f"{peer.address}:{port}" for peer in self.peers(name)}


class Choices(_Part):
    """The command line's choices for the lab; kept in its state until ``destroy``."""

    number: int | None = None
    provider: ProviderName | None = None
    stack: StackName | None = None
    hypervisor: HypervisorName | None = None

    @classmethod
    def of(cls, state: Path) -> Choices:
        """The choices kept in *state*; empty if there are none, or they are unreadable."""
        try:
            return cls.model_validate_json((state / "choices.json").read_text())
        except (OSError, ValueError):
            return cls()

    def updated(self, given: Choices) -> Choices:
        """These choices, overridden by those that are *given*."""
        return Choices(**{**self.model_dump(), **given.model_dump(exclude_none=True)})

    def keep(self, state: Path) -> None:
        """Write the choices into *state*, atomically."""
        state.mkdir(parents=True, exist_ok=True)
        files.write(state / "choices.json", json.dumps(self.model_dump(exclude_none=True)) + "\n")


def load(root: Path, choices: Choices | None = None, decide: Decide | None = None) -> Lab:
    """The lab that ``lab.yaml`` in *root* describes, with *choices* (default: those kept) applied.

    Reading starts no process. Only *decide* may, if the provider is ``auto``. Without *decide*, the
    lab keeps the provider ``auto``. It then has the addresses of the provider ``local`` or, if that
    has no pattern, of ``vagrant``: enough for a lab that was never up.

    :raises LabError: naming the wrong key and the values that are allowed.
    """
    root = root.absolute()
    state = root / ".lab"
    if len(str(state).encode()) > _LONGEST_STATE:
        raise LabError(
            f"the path {state} is too long for the lab's sockets: move the repository so that it "
            f"has at most {_LONGEST_STATE} characters"
        )
    if not _PLAIN_PATH.fullmatch(str(root)):
        raise LabError(
            f"the path {str(root)!r} has characters that configuration files cannot hold: move the "
            "repository to a path of letters, digits and . _ + - only"
        )
    chosen = Choices.of(state) if choices is None else choices
    raw = read_mapping(root / "lab.yaml", "lab.yaml", Lab)
    for key in _OURS:
        if key in raw:
            raise LabError(f"lab.yaml: unknown key {key!r}; {_allowed_keys((), Lab)}")
    if chosen.stack:
        raw["stack"] = chosen.stack
    if chosen.hypervisor:
        raw["hypervisor"] = chosen.hypervisor
    raw["provider"], raw["because"] = _provider(raw, chosen, decide)
    if chosen.number:
        if raw["provider"] in ("vagrant", "hosts"):
            raise LabError(
                f"-n {chosen.number} only works with the provider local: for "
                f"{raw['provider']}, list the instances in lab.yaml"
            )
        raw["instances"] = numbered(chosen.number)
        names = {one["name"] for one in raw["instances"]}
        raw["trust"] = _restricted(raw.get("trust"), names)
        raw["scopes"] = _possible(raw.get("scopes"), names)
    _split_trust(raw)
    _fill_addresses(raw)
    _fill_ranges(raw)
    raw = {key: value for key, value in raw.items() if value is not None}
    try:
        return Lab.model_validate({**raw, "root": root, "state": state})
    except ValidationError as error:
        problem = re.sub(r"(^|')policies\.", r"\1trust.", first_problem(error, Lab))
        raise LabError(f"lab.yaml: {problem}") from error


def _split_trust(raw: dict[str, Any]) -> None:
    """Keep the names of issuers in ``trust``, and what their tokens may do in ``policies``."""
    trust = raw.get("trust")
    if not isinstance(trust, dict):
        return
    policies = {name: issuers for name, issuers in trust.items() if isinstance(issuers, dict)}
    raw["trust"] = {name: list(one) if name in policies else one for name, one in trust.items()}
    raw["policies"] = {
        name: {issuer: {} if policy is None else policy for issuer, policy in issuers.items()}
        for name, issuers in policies.items()
    }


def numbered(number: int) -> list[dict[str, Any]]:
    """InstanceOne, InstanceTwo … up to *number*.

    :raises LabError: when *number* is outside 1 … 99.
    """
    if number not in NUMBERS:
        raise LabError(f"-n {number}: a lab has {NUMBERS[0]} to {NUMBERS[-1]} instances")
    from num2words import num2words  # noqa: PLC0415 - slow to import, rarely needed

    return [
        {"name": "Instance" + re.sub(r"[^A-Za-z]", "", num2words(n, lang="en").title())}
        for n in range(1, number + 1)
    ]


def _provider(raw: Mapping[str, Any], chosen: Choices, decide: Decide | None) -> tuple[object, str]:
    """The provider of the lab, and the reason for it."""
    name = chosen.provider or raw.get("provider")
    if name not in (None, "auto"):
        return name, "as chosen for this lab" if chosen.provider else "as lab.yaml says"
    if chosen.number:
        return "local", "the only one that supports -n"
    section = raw.get("vagrant")
    if not isinstance(section, dict):
        return "local", "lab.yaml has no section vagrant"
    wanted = section.get("provider")
    if decide is None:
        return "auto", "`up` chooses"
    return decide(wanted if isinstance(wanted, str) else None)


def _fill_addresses(raw: dict[str, Any]) -> None:
    """Give each instance without an address one from the provider's pattern."""
    patterns, instances = raw.get("addresses"), raw.get("instances")
    provider = raw["provider"]
    if not isinstance(patterns, dict) or not isinstance(provider, str):
        return
    if provider == "auto":
        provider = "local" if patterns.get("local") else "vagrant"
    pattern = patterns.get(provider)
    if not isinstance(pattern, str) or not isinstance(instances, list):
        return
    # The validation reports a wrong pattern.
    with contextlib.suppress(TypeError, ValueError):
        raw["instances"] = [
            {"address": str(nth_address(pattern, n)), **one} if isinstance(one, dict) else one
            for n, one in enumerate(instances, 1)
        ]


def _fill_ranges(raw: dict[str, Any]) -> None:
    """Give each instance without an external range the one that the pattern makes."""
    public, instances = raw.get("public"), raw.get("instances")
    pattern = public.get("range", DEFAULT_RANGE) if isinstance(public, dict) else DEFAULT_RANGE
    # A wrong pattern is the validation's business.
    with contextlib.suppress(TypeError, ValueError):
        _range_pattern(pattern)
        if isinstance(instances, list):
            raw["instances"] = [
                {"public": pattern % n, **one} if isinstance(one, dict) else one
                for n, one in enumerate(instances, 1)
            ]


class _Loader(yaml.SafeLoader):
    """Plain YAML, without features that hide mistakes or that the Vagrantfile cannot read."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"alias *{event.anchor} (write its value instead)"
            raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    problem = f"the key {quoted(key.value)} appears twice, again"
                    raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # PyYAML raises these for a value that does not fit its tag.
            raise yaml.MarkedYAMLError(
                None, None, f"{quoted(node.value)} does not fit {node.tag}", node.start_mark
            ) from error


def read_mapping(path: Path, name: str, model: type[BaseModel]) -> dict[str, Any]:
    """The content of the YAML file *path*, which describes a *model*; errors call the file *name*.

    :raises LabError: when it cannot be read, or is not a mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except FileNotFoundError as error:
        raise LabError(f"{path} is missing: restore it from the repository") from error
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise LabError(f"{name} is not YAML: {_yaml_problem(error)}") from error
    except RecursionError as error:
        what = model.__name__.lower()
        raise LabError(f"{name} does not describe a {what}: its brackets are too deep") from error
    if not isinstance(raw, dict):
        raise LabError(f"{name} must be a mapping; {_allowed_keys((), model)}")
    return {str(key): value for key, value in raw.items()}


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem or error.context} in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())


def _restricted(trust: object, names: set[str]) -> object:
    """*trust* without the instances that ``-n`` leaves out; other types stay unchanged."""
    if not isinstance(trust, dict):
        return trust
    return {key: _only(issuers, names) for key, issuers in trust.items() if key in names}


def _only(issuers: object, names: set[str]) -> object:
    if isinstance(issuers, list):
        return [one for one in issuers if not isinstance(one, str) or one in names]
    if isinstance(issuers, dict):
        return {one: policy for one, policy in issuers.items() if one in names}
    return issuers


def _possible(scopes: object, names: set[str]) -> object:
    """*scopes* without those that name an instance which ``-n`` leaves out."""
    if not isinstance(scopes, dict):
        return scopes
    return {
        name: scope
        for name, scope in scopes.items()
        if not isinstance(scope, dict)
        or all(not isinstance(one, str) or _instances_in(one) <= names for one in scope.values())
    }


def _instances_in(text: str) -> set[str]:
    """The instances that the text of a scope's value names, which may be an expression."""
    return set(re.findall(r"[^\s&|*()]+", text))


def _refuse_twice(key: str, what: str, values: list[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{key}: the {what} {value!r} appears twice; each must be unique")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of data that is no *model*, as a line that begins with the place."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    where = where if where.isprintable() else quoted(where)
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key {where!r}; {_allowed_keys(problem['loc'][:-1], model)}"
        case "literal_error":
            given, allowed = quoted(problem["input"]), problem["ctx"]["expected"]
            return f"{where}: {given} is not allowed; use {allowed}"
        case "missing":
            return f"the key {where!r} is missing; {_allowed_keys(problem['loc'][:-1], model)}"
        case "value_error":
            return ": ".join(part for part in (where, str(problem["ctx"]["error"])) if part)
        case _:
            return f"{where}: {problem['msg']} (not {quoted(problem['input'])})"


def _allowed_keys(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The keys that may appear at *loc* in a *model*, for an error message."""
    fields = _fields(model)
    for part in loc:
        if isinstance(part, str) and part in fields:
            fields = _fields(_model_in(fields[part].annotation)) or fields
    return f"allowed keys: {', '.join(key for key in fields if key not in _OURS)}"


def _fields(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    """The fields of *model* by their keys."""
    fields = model.model_fields.items() if model else ()
    return {field.alias or name: field for name, field in fields}


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
