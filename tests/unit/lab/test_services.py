"""The services' records are consistent, and so is what derives from them; nothing is started."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lab.wheels.layout import Layout
from lab.wheels.programs import programs
from lab.wheels.services import BACKING, SERVICES, Hypervisor, Service, program_names
from lab.wheels.spec import ACCOUNTS
from tests.conftest import ROOT
from tests.unit.lab.specs import spec

RECORDS = [
    pytest.param(service, id=f"{service.fork_server}")
    for service in {s.fork_server: s for services in SERVICES.values() for s in services}.values()
]


@pytest.fixture(params=["fake", "libvirt"])
def layout(tmp_path: Path, request: pytest.FixtureRequest) -> Layout:
    return Layout(spec(tmp_path, request.param))


@pytest.mark.parametrize("what", ["name", "type", "prefix", "port", "program"])
def test_no_two_services_share(layout: Layout, what: str) -> None:
    values = Counter(getattr(service, what) for service in layout.services)
    assert values.most_common(1)[0][1] == 1


def test_the_orchestrator_knows_the_programs_that_a_host_runs(layout: Layout) -> None:
    assert tuple(program.name for program in programs(layout)) == layout.program_names


def test_every_program_of_the_catalog_listens_on_the_port_of_its_service(layout: Layout) -> None:
    listens = {program.name: program.listens for program in programs(layout)}
    for service in layout.services:
        assert listens[service.program] == (("127.0.1.1", service.port),)


@pytest.mark.parametrize("service", RECORDS)
def test_a_service_has_a_template_for_each_of_its_files(service: Service) -> None:
    for name in service.configuration:
        template = ROOT / "lab/wheels/templates" / f"{Path(name).name}.j2"
        assert template.is_file()


@pytest.mark.parametrize("service", RECORDS)
def test_every_text_of_a_service_can_be_filled_in(layout: Layout, service: Service) -> None:
    commands = (*service.bootstrap, *service.finish)
    texts = [
        *service.arguments,
        *layout.environment(service).values(),
        *(worker.queue for worker in service.workers),
        *(text for command in commands for text in command.arguments),
        *(text for command in commands for text in command.environment.values()),
    ]
    assert [text for text in map(layout.fill, texts) if "$" in text] == []


@pytest.mark.parametrize("hypervisor", SERVICES)
def test_a_program_that_waits_waits_for_programs_that_do_not(hypervisor: Hypervisor) -> None:
    workers = [worker for service in SERVICES[hypervisor] for worker in service.workers]
    waiting = {worker.name for worker in workers if worker.after}
    for worker in workers:
        others = set(program_names(hypervisor)) - waiting - set(BACKING[hypervisor])
        assert set(worker.after) <= others


def test_every_service_with_an_account_has_a_password(layout: Layout) -> None:
    assert {service.name for service in layout.services if service.account} <= set(ACCOUNTS)
