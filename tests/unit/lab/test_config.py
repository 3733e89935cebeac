"""lab.yaml: its meaning, and the errors for a wrong one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lab import cli, hypervisors
from lab.config import Choices, Decide, Lab, Trust, load
from lab.errors import LabError
from lab.hypervisors import decide
from lab.lifecycle import Lifecycle

ROOT = Path(__file__).resolve().parents[3]
TWO = "instances: [{name: A, address: 127.0.1.1}, {name: B, address: 127.0.2.1}]\n"


def described(
    tmp_path: Path, text: str, choices: Choices | None = None, decide: Decide | None = None
) -> Lab:
    (tmp_path / "r").mkdir(exist_ok=True)
    (tmp_path / "r/lab.yaml").write_text(text)
    return load(tmp_path / "r", choices, decide)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short path: pytest's own may be too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="oid-", dir="/tmp") as directory:
        yield Path(directory)


def test_the_repositorys_lab_has_two_instances_and_devstacks_flavors() -> None:
    lab = load(ROOT, Choices(provider="local"))
    assert [(one.name, str(one.address)) for one in lab.instances] == [
        ("InstanceOne", "127.0.1.1"),
        ("InstanceTwo", "127.0.2.1"),
    ]
    assert [(f.name, f.vcpus, f.ram, f.disk) for f in lab.flavors] == [
        ("m1.nano", 1, 192, 1),
        ("m1.tiny", 1, 512, 1),
        ("m1.small", 1, 2048, 20),
    ]
    assert (lab.provider, lab.stack, lab.image.name) == ("local", "wheels", "cirros")
    assert [(n.name, str(n.cidr)) for n in lab.networks] == [("private", "10.0.0.0/26")]
    assert lab.issuers("InstanceOne") == ("InstanceOne", "InstanceTwo")
    assert lab.scopes == {"mixed": {"image": "InstanceTwo"}}
    assert lab.regions
    assert lab.state == ROOT / ".lab"


def test_a_number_makes_that_many_instances(tmp_path: Path) -> None:
    patterns = "addresses: {local: 127.0.%d.1}\n"
    lab = described(tmp_path, TWO + patterns, Choices(number=21))
    assert lab.names[:3] == ("InstanceOne", "InstanceTwo", "InstanceThree")
    assert lab.names[-1] == "InstanceTwentyOne"
    assert str(lab.instance("InstanceTwentyOne").address) == "127.0.21.1"


def test_the_nth_instance_without_an_address_gets_the_providers_nth(tmp_path: Path) -> None:
    text = (
        "instances: [{name: A}, {name: B, address: 127.9.9.9}, {name: C}]\n"
        "addresses: {local: 127.0.%d.1, vagrant: 192.0.2.1%d}\n"
    )

    def addresses(provider: str) -> list[str]:
        lab = described(tmp_path, text, Choices.model_validate({"provider": provider}))
        return [str(one.address) for one in lab.instances]

    assert addresses("local") == ["127.0.1.1", "127.9.9.9", "127.0.3.1"]
    assert addresses("vagrant") == ["192.0.2.11", "127.9.9.9", "192.0.2.13"]


def test_addresses_without_a_number_follow_the_first(tmp_path: Path) -> None:
    names = "".join(f"- {{name: I{n}}}\n" for n in range(1, 100))
    text = f"provider: vagrant\naddresses: {{vagrant: 192.168.56.11}}\ninstances:\n{names}"
    lab = described(tmp_path, text + "vagrant: {box: x, cpus: 1, memory: 512}\n")
    found = [str(one.address) for one in lab.instances]
    assert found[0] == "192.168.56.11"
    assert found[9] == "192.168.56.20"
    assert found[-1] == "192.168.56.109"


def test_auto_is_local_if_vagrant_does_not_work_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    machines = "vagrant: {box: x, cpus: 1, memory: 512}\n"
    lab = described(tmp_path, TWO + machines, decide=decide)
    assert (lab.provider, lab.because) == ("local", "Vagrant is not installed")

    (tmp_path / "bin/vagrant").write_text("#!/bin/sh\n")
    (tmp_path / "bin/vagrant").chmod(0o755)
    lab = described(tmp_path, TWO + machines, decide=decide)
    assert (lab.provider, lab.because) == (
        "local",
        "Vagrant is installed, but neither virtualbox nor libvirt works",
    )


def test_reading_a_lab_and_completing_its_names_start_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/bin/vagrant")
    names = "instances: [{name: InstanceOne}, {name: InstanceTwo}]\n"
    addresses = "addresses: {local: 127.0.%d.1, vagrant: 192.0.2.1%d}\n"
    machines = "vagrant: {box: x, cpus: 1, memory: 512, provider: libvirt}\n"
    lab = described(tmp_path, names + addresses + machines)
    assert (lab.provider, str(lab.instances[0].address)) == ("auto", "127.0.1.1")
    context = click.Context(cli.commands, obj=lab.root)
    for name in ("up", "ssh", "logs", "halt"):
        command = cli.commands.commands[name]
        found = command.params[0].shell_complete(context, "InstanceT")
        assert [item.value for item in found] == ["InstanceTwo"]


@pytest.mark.parametrize("number", [-1, 100])
def test_a_number_out_of_range_is_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(LabError, match="1 to 99"):
        described(tmp_path, TWO, Choices(number=number))


def test_choices_are_kept_until_they_are_removed(tmp_path: Path) -> None:
    Choices(number=3).keep(tmp_path / "r/.lab")
    text = TWO + "addresses: {local: 127.0.%d.1}\n"
    assert len(described(tmp_path, text).instances) == 3
    Choices.of(tmp_path / "r/.lab").updated(Choices(provider="local")).keep(tmp_path / "r/.lab")
    assert len(described(tmp_path, text).instances) == 3
    assert described(tmp_path, text).provider == "local"
    (tmp_path / "r/.lab/choices.json").unlink()
    assert described(tmp_path, TWO).names == ("A", "B")


def test_an_unknown_instance_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="unknown instance 'C'; known: A, B"):
        described(tmp_path, TWO).peers("C")


def test_trust_restricts_issuers_to_those_listed_and_oneself(tmp_path: Path) -> None:
    lab = described(tmp_path, TWO + "trust: {A: []}\n")
    assert lab.issuers("A") == ("A",)
    assert lab.issuers("B") == ("A", "B")


def test_trust_may_say_what_the_tokens_of_an_issuer_may_do(tmp_path: Path) -> None:
    text = (
        "trust: {A: {B: {services: [image], methods: [GET], rate: 5, roles: [reader]}}, B: {A: }}\n"
    )
    lab = described(tmp_path, TWO + text)
    assert (lab.issuers("A"), lab.issuers("B")) == (("A", "B"), ("A", "B"))
    narrow = Trust(services=("image",), methods=("GET",), rate=5, roles=("reader",))
    assert lab.policies == {"A": {"B": narrow}, "B": {"A": Trust()}}


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (
            "{service: [image]}",
            r"lab.yaml: unknown key 'trust.A.B.service'; allowed keys: services",
        ),
        ("{services: image}", r"lab.yaml: trust.A.B.services: "),
        (
            "{services: [glance]}",
            r"trust: A: B: the stack wheels has no service of the type 'glance'",
        ),
        ("{methods: [get]}", r"lab.yaml: trust.A.B.methods.0: "),
        ("{rate: 0}", r"lab.yaml: trust.A.B.rate: "),
        ("{admin: 7}", r"lab.yaml: trust.A.B.admin: "),
        ("[image]", r"lab.yaml: trust.A.B: "),
    ],
)
def test_a_wrong_policy_is_named(tmp_path: Path, policy: str, problem: str) -> None:
    with pytest.raises(LabError, match=problem):
        described(tmp_path, TWO + f"trust: {{A: {{B: {policy}}}}}\n")
    with pytest.raises(LabError, match=r"trust: 'Z' is not an instance"):
        described(tmp_path, TWO + "trust: {A: {Z: {}}}\n")


def test_trust_is_restricted_to_the_instances_that_a_number_makes(tmp_path: Path) -> None:
    text = (ROOT / "lab.yaml").read_text().replace("trust: {}", "trust: {InstanceOne: []}")
    lab = described(tmp_path, text, Choices(number=3))
    assert lab.issuers("InstanceOne") == ("InstanceOne",)
    assert described(tmp_path, text, Choices(number=1)).names == ("InstanceOne",)


def test_a_scope_may_name_services_by_project_and_keeps_their_types(tmp_path: Path) -> None:
    lab = described(tmp_path, TWO + "scopes: {mixed: {nova: A, glance: B}, home: {}}\n")
    assert lab.scopes == {"mixed": {"compute": "A", "image": "B"}, "home": {}}


def test_a_named_scope_may_have_an_expression_but_is_no_plain_one(tmp_path: Path) -> None:
    text = TWO + "scopes: {all: {image: '*'}, either: {nova: A | B}, mixed: {image: B}}\n"
    lab = described(tmp_path, text)
    assert lab.scopes["either"] == {"compute": "A | B"}
    assert set(lab.plain_scopes) == {"mixed"}
    with pytest.raises(LabError, match="scopes: x: 'C' is not an instance"):
        described(tmp_path, TWO + "scopes: {x: {image: A & C}}\n")


def test_a_lab_needs_no_scopes(tmp_path: Path) -> None:
    assert described(tmp_path, TWO).scopes == {}
    assert described(tmp_path, TWO + "scopes:\n").scopes == {}


def test_scopes_are_restricted_to_the_instances_that_a_number_makes(tmp_path: Path) -> None:
    text = (ROOT / "lab.yaml").read_text()
    assert described(tmp_path, text, Choices(number=1)).scopes == {}
    assert set(described(tmp_path, text, Choices(number=3)).scopes) == {"mixed"}


def test_scopes_that_are_no_scopes_are_refused_with_a_number(tmp_path: Path) -> None:
    text = "addresses: {local: 127.0.%d.1}\nscopes: {x: {image: [InstanceOne]}, y: 1}\n"
    with pytest.raises(LabError, match=r"scopes.x.image: .*string"):
        described(tmp_path, text, Choices(number=1))


def test_a_devstack_may_have_services_that_the_lab_does_not_know(tmp_path: Path) -> None:
    text = "stack: devstack\nscopes: {disks: {cinder: B}}\ntrust: {A: {B: {services: [dns]}}}\n"
    lab = described(tmp_path, TWO + text)
    assert lab.scopes == {"disks": {"block-storage": "B"}}
    assert lab.limits("A") == {"B": {"services": ["dns"], "admin": False}}
    assert lab.limits("B") == {}


def test_proxies_meet_at_another_port_with_tls(tmp_path: Path) -> None:
    assert described(tmp_path, TWO).peer_addresses("A") == {"B": "127.0.2.1:8888"}
    lab = described(tmp_path, TWO + "tls: true\n")
    assert lab.peer_addresses("A") == {"B": "127.0.2.1:8889"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TWO + "stak: wheels\n", r"unknown key 'stak'; allowed keys: provider, stack, hypervisor"),
        (TWO + "provider: aws\n", r"provider: 'aws' is not allowed; use 'auto', 'local'"),
        (TWO + "root: /\n", r"unknown key 'root'"),
        (TWO + "image: {nam: x}\n", r"unknown key 'image.nam'; allowed keys: name, url"),
        (TWO + "image: {url: nonsense}\n", r"image.url: .*URL"),
        (TWO + "flavors: [{name: x, vcpus: 0, ram: 1, disk: 1}]\n", r"flavors.0.vcpus: .*greater"),
        (TWO + "flavors: [{name: x, vcpus: 1, disk: 1}]\n", r"'flavors.0.ram' is missing; allowed"),
        (TWO + "networks: [{name: x, cidr: 10.0.0.1/26}]\n", r"networks.0.cidr: .*IPv4 network"),
        (TWO + "hypervisor: xen\n", r"hypervisor: 'xen' is not allowed; use .*'libvirt'"),
        (TWO + "public: {range: 10.9.0.0/24}\n", r"public.range: .* is not a pattern of a range"),
        (TWO + "public: {range: 10.9.%d.1/24}\n", r"public.range: .* is not a pattern of a range"),
        (
            TWO + "public: {range: 10.9.%d.0/31}\n",
            r"10.9.1.0/31 is not a range for",
        ),
        (
            "instances: [{name: A, address: 127.0.1.1, public: 10.0.0.0/24}]\n"
            "networks: [{name: private, cidr: 10.0.0.64/26}]\n",
            r"instances: A: public: 10.0.0.0/24 overlaps 10.0.0.64/26 of networks: private",
        ),
        (
            "instances: [{name: A, address: 127.0.1.1, public: 10.0.0.0/16},"
            " {name: B, address: 127.0.2.1, public: 10.0.9.0/24}]\n",
            r"instances: A: public: 10.0.0.0/16 overlaps 10.0.9.0/24 of instances: B: public",
        ),
        (TWO + "trust: {A: [Z]}\n", r"trust: 'Z' is not an instance; known: A, B"),
        (TWO + "trust: {Z: []}\n", r"trust: 'Z' is not an instance; known: A, B"),
        (TWO + "scopes: {x: {image: Z}}\n", r"scopes: x: 'Z' is not an instance; known: A, B"),
        (TWO + "scopes: {x: {imag: A}}\n", r"scopes.x: unknown service type 'imag' in scope"),
        (TWO + "scopes: {x: {image: A, glance: B}}\n", r"scopes.x: .*'image' appears twice"),
        (TWO + "scopes: {x: {cinder: A}}\n", r"scopes: x: .*no service of the type 'block-st"),
        (TWO + "scopes: {x: {image: '?'}}\n", r"scopes.x: '\?' is not an instance name"),
        (TWO + "scopes: {x: image=A}\n", r"scopes.x: .*(mapping|dictionary)"),
        (TWO + "scopes: {a: {image: B}}\n", r"scopes: 'a' is the name of an instance"),
        (TWO + "scopes: {x: {}, X: {}}\n", r"scopes: the name 'x' appears twice"),
        (TWO + "scopes: {a=b: {}}\n", r"scopes.*: 'a=b' is not a name for a scope"),
        (TWO + "scopes: [x]\n", r"scopes: .*(mapping|dictionary)"),
        (TWO + "regions: sometimes\n", r"regions: .*boolean"),
        ("instances: []\n", r"instances: .*at least 1"),
        ("provider: local\n", r"the key 'instances' is missing"),
        ("instances: [{name: A, address: nowhere}]\n", r"instances.0.address: .*IPv4"),
        ("instances: [{name: a b, address: 127.0.1.1}]\n", r"instances.0.name: .*letters, digits"),
        ("instances: [{name: a_b, address: 127.0.1.1}]\n", r"instances.0.name: .*letters, digits"),
        ("instances: [{name: shared, address: 127.0.1.1}]\n", r"'shared' is a name that the lab"),
        (
            "instances: [{name: A, address: 127.0.1.1}, {name: a, address: 127.0.2.1}]\n",
            r"the name 'a' appears twice",
        ),
        (
            "instances: [{name: A, address: 127.0.1.1}, {name: B, address: 127.0.1.1}]\n",
            r"the address '127.0.1.1' appears twice",
        ),
        ("instances: [{name: A}]\n", r"the key 'instances.0.address' is missing"),
        (
            TWO + "addresses: {local: 127.0.1}\n",
            r"addresses.local: '127.0.1' is not an address pattern",
        ),
        (
            TWO + "addresses: {local: 127.%d.%d.1}\n",
            r"addresses.local: .* is not an address pattern",
        ),
        (TWO + "vagrant: {box: x, cpus: 1}\n", r"the key 'vagrant.memory' is missing; allowed"),
        (
            TWO + "vagrant: {box: x, cpus: 1, memory: 512, provider: xen}\n",
            r"vagrant.provider: 'xen' is not allowed; use 'virtualbox'",
        ),
        (TWO + "devstack: {settings: {a b: 1}}\n", r"'a b' is not a variable"),
        (TWO + "mirrors: {pip: nonsense}\n", r"mirrors.pip: .*URL"),
        (
            "instances: [{name: A, address: 192.0.2.1, ssh: '-oProxyCommand=x'}]\n",
            r"instances.0.ssh: .* is not a target for ssh: write \[USER@\]HOST",
        ),
        ("a: [\nb: ]]\n", r"not YAML: .* in line 2"),
        ("a: !!bool x\n", r"not YAML: 'x' does not fit .*bool in line 1"),
        ('a: !!int ""\n', r"not YAML: '' does not fit .*int in line 1"),
        ("a: !!float x\n", r"not YAML: 'x' does not fit .*float in line 1"),
        ("a: !!timestamp x\n", r"not YAML: 'x' does not fit .*timestamp in line 1"),
        ("a: 2026-99-99\n", r"not YAML: '2026-99-99' does not fit .*timestamp in line 1"),
        (f"a: {'1' * 5000}\n", r"not YAML: '1+\.\.\.1+' does not fit .*int in line 1"),
        ("[" * 3000, r"brackets are too deep"),
        ("a: &a [1]\nb: *a\n", r"not YAML: alias \*a \(write its value instead\) in line 2"),
        ("&a [*a]\n", r"alias \*a"),
        ("&a {<<: *a}\n", r"alias \*a"),
        ("provider: local\n" * 2, r"the key 'provider' appears twice, again in line 2"),
        (TWO + "image:\n  name: x\n  name: y\n", r"the key 'name' appears twice, again in line 4"),
        (TWO + "provider: {a: b}\n", r"provider: {'a': 'b'} is not allowed; use 'auto'"),
        (TWO + "provider: [local]\n", r"provider: \['local'\] is not allowed; use 'auto'"),
        (TWO + "provider: []\n", r"provider: \[\] is not allowed; use 'auto'"),
        (TWO + "provider: {a: b}\naddresses: {local: 127.0.%d.1}\n", r"provider: .* not allowed"),
        (TWO + "stack: {a: b}\n", r"stack: {'a': 'b'} is not allowed; use 'wheels'"),
        (TWO + "stack: [wheels]\n", r"stack: \['wheels'\] is not allowed; use 'wheels'"),
        (TWO + 'trust: {"a\\nb": 1}\n', r"'trust.a\\nb': .*tuple"),
        ("? [a]\n: b\n", r"not YAML: found unhashable key in line 1"),
        ("- a\n", r"allowed keys: provider"),
        ("", r"allowed keys: provider"),
    ],
)
def test_an_error_names_the_key_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(LabError, match=said) as caught:
        described(tmp_path, text)
    assert str(caught.value).startswith("lab.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vcpus", "ram", "disk"])
def test_a_flavor_has_to_fit_into_novas_columns(tmp_path: Path, key: str) -> None:
    def flavors(number: int) -> str:
        flavor = {"name": "x", "vcpus": 1, "ram": 1, "disk": 1, key: number}
        return TWO + f"flavors: [{flavor}]\n"

    assert getattr(described(tmp_path, flavors(2**31 - 1)).flavors[0], key) == 2**31 - 1
    with pytest.raises(LabError, match=rf"flavors.0.{key}: .*less than or equal to 2147483647"):
        described(tmp_path, flavors(2**31))


@pytest.mark.parametrize(("key", "most"), [("cpus", 1024), ("memory", 2**24)])
def test_the_size_of_a_machine_is_bounded(tmp_path: Path, key: str, most: int) -> None:
    machine = {"box": "x", "cpus": 1, "memory": 512, key: 10**20}
    instance = {"name": "A", "address": "127.0.1.1", key: 10**20}
    with pytest.raises(LabError, match=rf"vagrant.{key}: .*less than or equal to {most}"):
        described(tmp_path, TWO + f"vagrant: {machine}\n")
    with pytest.raises(LabError, match=rf"instances.0.{key}: .*less than or equal to {most}"):
        described(tmp_path, f"instances: [{instance}]\n")


@pytest.mark.parametrize("address", ["8.8.8.8", "10.1.2.3", "192.168.56.11"])
def test_the_provider_local_has_loopback_addresses_only(tmp_path: Path, address: str) -> None:
    text = f"instances: [{{name: A, address: {address}}}]\n"
    with pytest.raises(LabError, match=rf"A: {address} is not a loopback address: .*127\.x\.y\.z"):
        described(tmp_path, text, Choices(provider="local"))
    assert described(tmp_path, text, Choices(provider="hosts")).names == ("A",)


@pytest.mark.parametrize("provider", ["local", "vagrant", "hosts"])
@pytest.mark.parametrize(
    "address", ["0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255", "0", "true"]
)
def test_an_address_that_no_host_can_have_is_refused(
    tmp_path: Path, provider: str, address: str
) -> None:
    text = f"instances: [{{name: A, address: {address}}}]\nprovider: {provider}\n"
    with pytest.raises(LabError, match=r"instances.0.address: .* cannot be the address of a host"):
        described(tmp_path, text)


def test_trust_that_is_not_a_list_of_names_is_refused_with_a_number(tmp_path: Path) -> None:
    text = "addresses: {local: 127.0.%d.1}\ntrust: {InstanceOne: [[]]}\n"
    with pytest.raises(LabError, match=r"trust.InstanceOne.0: .*string"):
        described(tmp_path, text, Choices(number=1))


def test_unreadable_choices_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "choices.json").write_bytes(b"\xff")
    assert Choices.of(tmp_path) == Choices()


def test_a_missing_description_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"lab\.yaml is missing"):
        load(tmp_path)


def test_a_path_too_long_for_sockets_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="too long"):
        load(tmp_path / ("x" * 60))


def test_a_path_that_configurations_cannot_quote_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="letters, digits"):
        load(tmp_path / "a b")


def test_a_lab_without_a_provider_yet_is_read_with_the_addresses_that_there_are(
    tmp_path: Path,
) -> None:
    text = (
        "instances: [{name: A}]\naddresses: {vagrant: 192.0.2.1%d}\n"
        "vagrant: {box: x, cpus: 1, memory: 512}\n"
    )
    lab = described(tmp_path, text)
    assert (lab.provider, str(lab.instances[0].address)) == ("auto", "192.0.2.11")


def test_a_lab_without_a_provider_yet_is_down_whatever_its_stack_needs(tmp_path: Path) -> None:
    machines = "vagrant: {box: x, cpus: 1, memory: 512}\nstack: devstack\n"
    lab = described(tmp_path, TWO + machines)
    status = Lifecycle.of(lab.root).status()
    assert status["provider"] == "auto"
    assert not any(one["up"] for one in status["instances"])


def test_the_status_of_a_lab_on_vagrant_asks_no_hypervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(hypervisors, "_DEVICES", {})
    machines = "vagrant: {box: x, cpus: 1, memory: 512, provider: libvirt}\n"
    lab = described(tmp_path, TWO + machines, Choices(provider="vagrant"))
    Choices(provider="vagrant").keep(lab.state)
    assert Lifecycle.of(lab.root).status()["provider"] == "vagrant"
