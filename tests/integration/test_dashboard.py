"""Horizon, as a person uses it in a browser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from lab import apt
from lab.dashboard import Dashboard
from tests.conftest import RunningLab
from tests.integration.conftest import Shell
from tests.integration.guests import MARKER

T = TypeVar("T")

#: The server that the tests make.
SERVER = "test-dashboard"
#: The entry of the login menu with the images of InstanceTwo: the named scope of lab.yaml.
ACROSS = "mixed"
#: Seconds that whatever a test waits for may take.
PATIENCE = 60

_PACKAGES = ("chromium", "chromium-driver")
_OPTIONS = (
    *("--headless=new", "--window-size=1280,900", "--disable-dev-shm-usage", "--disable-gpu"),
    # Nothing leaves this machine, whatever proxy its environment names.
    *("--no-proxy-server", "--disable-background-networking", "--disable-component-update"),
)
_IMAGE = "//tr[.//a[normalize-space()='cirros']]"
_ROW = f"//tr[@data-display='{SERVER}']"


class Person:
    """Someone who looks at the dashboard at *url* in a browser, and takes *pictures*."""

    def __init__(self, url: str, passwords: dict[str, str], pictures: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        # Chromium's sandbox refuses to run as root.
        for option in (*_OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else [])):
            options.add_argument(option)
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        self.browser = webdriver.Chrome(options=options, service=service)
        self._url = url
        self._passwords = passwords
        self._pictures = pictures

    def visits(self, page: str) -> None:
        self.browser.get(self._url + page)

    def until(self, what: Callable[[], T]) -> T:
        """*what*, as soon as it is true and the page holds still."""
        wait = WebDriverWait(
            self.browser, PATIENCE, poll_frequency=0.1, ignored_exceptions=(WebDriverException,)
        )
        return wait.until(lambda _: what())

    def sees(self, xpath: str) -> WebElement:
        """The first visible element at *xpath*, as soon as there is one."""
        found = self.until(
            lambda: [e for e in self.browser.find_elements(By.XPATH, xpath) if e.is_displayed()]
        )
        return found[0]

    def misses(self, xpath: str) -> None:
        """Wait until there is nothing at *xpath*."""
        self.until(lambda: not self.browser.find_elements(By.XPATH, xpath))

    def clicks(self, xpath: str) -> None:
        """Click the first visible element at *xpath*, as soon as nothing covers it."""

        def click() -> bool:
            self.sees(xpath).click()
            return True

        self.until(click)

    def types(self, text: str, xpath: str) -> None:
        field = self.sees(xpath)
        self.until(field.is_enabled)
        field.clear()
        field.send_keys(text)

    def types_at_the_console(self, text: str, answer: str) -> None:
        """Type *text* at the serial console of this page until the guest says *answer*."""
        self.browser.switch_to.frame(self.sees("//iframe[@id='console_embed']"))

        def says() -> bool:
            terminal = self.sees("//*[contains(@class, 'terminal')]")
            if answer in terminal.text:
                return True
            terminal.click()
            ActionChains(self.browser).send_keys(text).perform()
            return False

        self.until(says)
        self.browser.switch_to.default_content()

    def keeps_picture(self, name: str) -> None:
        self.browser.save_screenshot(str(self._pictures / f"{name}.png"))

    def fills_in_login(self, entry: str, form: str = "//form") -> None:
        """Fill in the login form for *entry* of its menu, as the administrator, and send it."""
        Select(self.sees(f"{form}//select[@id='id_region']")).select_by_visible_text(entry)
        self.types("admin", f"{form}//input[@id='id_username']")
        password = self._passwords.get(entry, self._passwords["InstanceOne"])
        self.types(password, f"{form}//input[@id='id_password']")
        self.keeps_picture(f"login to {entry}")
        self.clicks(f"{form}//*[@type='submit']")
        self.sees(f"//*[contains(@class, 'region-title')][normalize-space()='{entry}']")

    def logs_in(self, entry: str) -> None:
        """Log in anew, to *entry* of the login menu."""
        self.browser.delete_all_cookies()
        self.visits("auth/login/")
        self.fills_in_login(entry)

    def switches(self, entry: str) -> None:
        """Choose *entry* of the region menu."""
        # On pages that Angular draws, such as that of the images, the menu leads to the overview.
        self.visits("project/instances/")
        self.clicks("//*[contains(@class, 'region-title')]")
        self.clicks(f"//*[@id='region_list']//a[normalize-space()='{entry}']")
        self.fills_in_login(entry, "//*[@id='modal_wrapper']//form")

    def image(self) -> str:
        """The ID of the one image on the page of images."""
        self.visits("project/images")
        link = self.sees(f"{_IMAGE}//a[normalize-space()='cirros']")
        assert len(self.browser.find_elements(By.XPATH, _IMAGE)) == 1
        return str(link.get_attribute("href")).rpartition("/")[2]


@pytest.fixture(scope="module")
def url(lab: RunningLab) -> Iterator[str]:
    """Where the dashboard is; afterwards, it stops unless it ran before."""
    dashboard = Dashboard(lab.config)
    was = dashboard.state()
    said = lab.setup_env("dashboard").stdout
    assert dashboard.url in said
    yield dashboard.url
    if was != "running":
        dashboard.halt()


@pytest.fixture(scope="module")
def person(
    lab: RunningLab,
    url: str,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[Person]:
    if apt.missing(_PACKAGES) and os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip(f"packages are missing: {apt.install_line(apt.missing(_PACKAGES))}")
    apt.ensure(_PACKAGES, print)
    clouds: dict[str, Any] = yaml.safe_load((lab.config.state / "clouds.yaml").read_text())
    passwords = {name: cloud["auth"]["password"] for name, cloud in clouds["clouds"].items()}
    with pytest.MonkeyPatch.context() as patch:
        # Selenium would ask a proxy for its own driver.
        patch.setenv("no_proxy", "*")
        pictures = tmp_path_factory.mktemp("dashboard")
        capturing: Any = pytestconfig.pluginmanager.get_plugin("capturemanager")
        with capturing.global_and_fixture_disabled():
            print(f"\nscreenshots: {pictures}")
        one = Person(url, passwords, pictures)
        try:
            yield one
            one.keeps_picture("at the end")
        finally:
            one.browser.quit()


@pytest.fixture
def no_server(one: Shell) -> Iterator[None]:
    """No server of this name, before and after a test that may fail."""

    def remove() -> None:
        for server in one.json(f"server list --all-projects --name {SERVER}"):
            one.openstack(f"server delete {server['ID']} --wait")

    remove()
    yield
    remove()


def test_an_instance_of_the_menu_shows_its_own_images(
    person: Person, one: Shell, two: Shell
) -> None:
    person.logs_in("InstanceTwo")
    assert person.image() == two.image
    person.switches("InstanceOne")
    assert person.image() == one.image


def test_an_entry_with_a_scope_shows_the_images_of_the_other_instance(
    person: Person, two: Shell
) -> None:
    person.logs_in("InstanceOne")
    person.switches(ACROSS)
    assert person.image() == two.image
    person.keeps_picture("images of InstanceTwo")


def test_the_scope_outlives_a_change_of_the_project(person: Person, two: Shell) -> None:
    person.logs_in(ACROSS)
    before = person.sees("//*[contains(@class, 'context-project')]").text.strip()
    [other] = {"admin", "demo"} - {before}
    menu = "//*[contains(@class, 'context-project')]/ancestor::a"
    person.clicks(menu)
    person.clicks(f"{menu}/following-sibling::ul//a[normalize-space()='{other}']")
    person.sees(f"//*[contains(@class, 'context-project')][normalize-space()='{other}']")
    assert person.image() == two.image


@pytest.mark.usefixtures("no_server")
def test_a_server_of_one_instance_starts_from_the_image_of_another(
    person: Person, lab: RunningLab, one: Shell, two: Shell
) -> None:
    person.logs_in(ACROSS)
    person.visits("project/images")
    person.clicks(f"{_IMAGE}//button[normalize-space()='Launch']")
    person.types(SERVER, "//wizard//input[@name='name']")
    person.clicks("//wizard//li[contains(., 'Flavor')]")
    person.clicks("//wizard//tr[td[normalize-space()='m1.nano']]//button")
    person.keeps_picture("launch")
    person.clicks("//wizard//button[contains(@class, 'finish')]")
    person.misses("//wizard")

    person.visits("project/instances/")
    person.sees(f"{_ROW}[td[normalize-space()='Active']]")
    person.keeps_picture("the server is active")
    ours = f"display_name = '{SERVER}' AND NOT deleted"
    rows = f"SELECT image_ref FROM {one.cell}.instances WHERE {ours}"
    assert one.sql(rows) == [[two.image]]

    person.clicks(f"{_ROW}//a[normalize-space()='{SERVER}']")
    person.clicks("//a[normalize-space()='Log']")
    said = f"{MARKER} InstanceTwo" if lab.config.has_guests else "FAKE CONSOLE OUTPUT"
    log = "//pre[contains(@class, 'logs')]"

    def says() -> bool:
        if said in person.sees(log).text:
            return True
        person.browser.refresh()
        return False

    person.until(says)
    person.keeps_picture("the log of the server")
    if lab.config.has_guests:
        person.clicks("//a[normalize-space()='Console']")
        person.types_at_the_console("\n", f"{SERVER} login:")
        person.keeps_picture("the console of the server")

    person.visits("project/instances/")
    person.clicks(f"{_ROW}//a[contains(@class, 'dropdown-toggle')]")
    person.clicks(f"{_ROW}//*[contains(@id, '__action_delete')]")
    person.clicks("//*[contains(@class, 'modal')]//*[normalize-space()='Delete Instance']")
    person.misses(_ROW)
    assert one.json(f"server list --all-projects --name {SERVER}") == []
