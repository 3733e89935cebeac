"""Check every instance over ssh, as on any machine."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from testinfra.host import Host

from lab.config import Instance
from lab.providers.local import SSH_PORT
from lab.stacks.wheels import _spec
from lab.wheels.layout import Layout
from lab.wheels.programs import programs
from tests.conftest import ROOT, RunningLab

PORTS = {
    "mariadb": 3306,
    "rabbitmq": 5672,
    "identity": 5000,
    "image": 9292,
    "compute": 8774,
    "placement": 8778,
    "network": 9696,
    "proxy": 8888,
}
PROGRAMS = (
    "mariadb",
    "rabbitmq",
    "haproxy",
    "keystone",
    "glance-api",
    "placement",
    "neutron-api",
    "nova-api",
    "nova-conductor",
    "nova-scheduler",
    "nova-compute",
)
#: Distributions that must be exactly as released.
VANILLA = (
    "glance",
    "keystone",
    "keystoneauth1",
    "keystonemiddleware",
    "neutron",
    "nova",
    "openstack-placement",
    "openstacksdk",
    "osc-lib",
    "python-openstackclient",
    "requests",
)

_UNTOUCHED = """
import base64, hashlib, importlib.metadata, json, sys
changed = []
for name in sys.argv[1:]:
    for file in importlib.metadata.files(name):
        if file.hash and file.suffix != ".pyc":
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                changed.append(str(file))
print(json.dumps(changed))
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_under_supervisor(host: Host, directory: Path, program: str) -> None:
    supervisorctl = host.check_output("command -v supervisorctl")
    supervised = host.supervisor(program, supervisorctl, str(directory / "etc/supervisord.conf"))
    assert supervised.is_running


@pytest.mark.parametrize("service", PORTS)
def test_a_service_listens_on_the_address_of_its_instance(
    host: Host, instance: Instance, service: str
) -> None:
    assert host.socket(f"tcp://{instance.address}:{PORTS[service]}").is_listening


@pytest.mark.parametrize("service", PORTS)
def test_no_service_listens_on_every_address(host: Host, service: str) -> None:
    listening = host.socket.get_listening_sockets()
    assert f"tcp://0.0.0.0:{PORTS[service]}" not in listening


def test_up_knows_every_port_that_an_instance_listens_on(
    host: Host, lab: RunningLab, instance: Instance
) -> None:
    layout = Layout(_spec(lab.config, lab.host(instance.name)))
    known = {port for program in programs(layout) for _, port in program.listens}
    lines = host.check_output(f"ss -Hltn src {instance.address}").splitlines()
    found = {int(line.split()[3].rpartition(":")[2]) for line in lines}
    assert found - {22, SSH_PORT} == known


def test_haproxy_accepts_its_configuration_without_a_warning(host: Host, directory: Path) -> None:
    check = host.run("/usr/sbin/haproxy -c -f %s", str(directory / "etc/proxy/haproxy.cfg"))
    assert check.rc == 0
    assert "WARNING" not in check.stdout + check.stderr


@pytest.mark.parametrize(
    "file", ["glance/glance-api.conf", "nova/nova.conf", "neutron/neutron.conf"]
)
def test_services_talk_to_their_own_proxy_only(
    host: Host, instance: Instance, directory: Path, file: str
) -> None:
    lines = host.file(str(directory / "etc" / file)).content_string.splitlines()
    urls = [line for line in lines if " = http://" in line]
    assert urls
    assert [line for line in urls if f"http://{instance.address}:8888/" not in line] == []


def test_keystone_has_no_public_endpoint_that_would_drop_the_scope(
    host: Host, directory: Path
) -> None:
    configuration = host.file(str(directory / "etc/keystone/keystone.conf"))
    assert not configuration.contains("^public_endpoint")


@pytest.mark.parametrize("secret", [".", "etc", "data"])
def test_what_is_secret_is_closed_to_others(host: Host, directory: Path, secret: str) -> None:
    assert host.file(str(directory / secret)).mode & 0o077 == 0


def test_what_programs_write_is_closed_to_others(host: Host, directory: Path) -> None:
    # MariaDB chooses its own modes; all its files are below data and run.
    names = [program for program in PROGRAMS if program != "mariadb"]
    pids = f"$(supervisorctl -c {directory}/etc/supervisord.conf pid {' '.join(names)})"
    masks = host.check_output(f"for pid in {pids}; do grep Umask /proc/$pid/status; done")
    assert masks.splitlines() == ["Umask:\t0077"] * len(names)


def test_rabbitmq_runs_without_a_script_that_it_would_outlive(host: Host, directory: Path) -> None:
    pid = host.check_output(f"supervisorctl -c {directory}/etc/supervisord.conf pid rabbitmq")
    assert host.file(f"/proc/{pid}/comm").content_string == "beam.smp\n"


def test_rabbitmq_has_a_cookie_that_erlang_did_not_make(host: Host, directory: Path) -> None:
    cookie = host.file(str(directory / "data/rabbitmq/.erlang.cookie"))
    assert re.fullmatch("[0-9a-f]{32}", cookie.content_string)
    assert cookie.mode & 0o077 == 0


def test_the_passwords_of_clients_are_closed_to_others(
    host: Host, lab: RunningLab, instance: Instance
) -> None:
    clouds = lab.host(instance.name).home / ".config/openstack/clouds.yaml"
    assert host.file(str(clouds)).mode & 0o077 == 0


def test_a_shell_has_the_administrators_password_of_its_own_instance_only(
    host: Host, lab: RunningLab, instance: Instance
) -> None:
    text = host.file(str(lab.host(instance.name).home / ".config/openstack/clouds.yaml"))
    clouds = yaml.safe_load(text.content_string)["clouds"]
    owners = yaml.safe_load((lab.config.state / "clouds.yaml").read_text())["clouds"]
    assert set(clouds) == set(owners) == {*lab.config.names, *lab.config.scopes}
    administrators = {
        name for name in lab.config.names if owners[name]["auth"]["password"] in text.content_string
    }
    assert administrators == {instance.name}


def test_the_image_says_what_it_is_made_of(host: Host, lab: RunningLab) -> None:
    if lab.config.image.url:
        pytest.skip("lab.yaml names a real image")
    image = json.loads(host.check_output("openstack image show cirros -f json"))
    if lab.config.has_guests:
        assert "linux-image-" in image["properties"]["openstackoid:made_of"]
        assert image["size"] < 20 * 1000 * 1000
    else:
        assert image["properties"]["openstackoid_placeholder"] == "true"
        assert image["size"] == 1024 * 1024


def test_openstack_and_its_clients_are_as_their_authors_released_them(host: Host) -> None:
    python = Path(host.check_output("command -v openstack")).with_name("python")
    changed = host.check_output(f"%s -c %s {' '.join(VANILLA)}", str(python), _UNTOUCHED)
    assert json.loads(changed) == []


def test_the_release_set_is_the_pinned_one(host: Host) -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    wanted = tomllib.loads((ROOT / "lab" / "pyproject.toml").read_text())
    names = [*wanted["project"]["optional-dependencies"]["wheels"], "python-openstackclient"]
    python = Path(host.check_output("command -v openstack")).with_name("python")
    code = "import sys, importlib.metadata as m; print(*(m.version(n) for n in sys.argv[1:]))"
    found = host.check_output(f"%s -c %s {' '.join(names)}", str(python), code).split()
    assert dict(zip(names, found, strict=True)) == {name: pinned[name] for name in names}
