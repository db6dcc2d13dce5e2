"""The admin in a real browser: the main paths, live parts, keyboard, narrow screens, hostile rows.

Without Chromium these are skipped, which the report says; in continuous integration it is there.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbtasks import operations
from dbtasks.engines import Engine
from dbtasks.models import ScheduledTask
from tests.admin.test_tasks import failed
from tests.admin_site import DASHBOARD, EVIL, LIST, person
from tests.browser import chromium, complaints, live_server, missing_browser, sign_in
from tests.engines import new_task, node, put, stored
from tests.waiting import wait_until

MISSING = missing_browser()
PATIENCE = 30
NARROW = 360
# The widest thing on the page, and whether the page scrolls to the side.
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def browser(site: None) -> Iterator[tuple[Any, str]]:
    """A driver and the address of the server."""
    if MISSING:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with live_server() as server, chromium() as driver:
        yield driver, server


@pytest.fixture
def engine(browser: tuple[Any, str], engine: Engine) -> Iterator[Engine]:
    yield engine
    browser[0].get("about:blank")  # nothing asks the server any more


@pytest.fixture
def visit(browser: tuple[Any, str], engine: Engine) -> Callable[[str], Any]:
    """Opens a page as a superuser; gives the driver."""
    driver, server = browser
    driver.set_window_size(1280, 900)
    sign_in(driver, server, person("root", superuser=True))
    complaints(driver)  # those of the page before

    def open_page(path: str) -> Any:
        driver.get(server + path)
        return driver

    return open_page


def find(driver: Any, selector: str) -> Any:
    """The element, as soon as it is there."""
    from selenium.webdriver.common.by import By

    return wait_until(
        lambda: next(iter(driver.find_elements(By.CSS_SELECTOR, selector)), None),
        PATIENCE,
        f"no element {selector}",
    )


def click(driver: Any, selector: str) -> None:
    """Clicks the element and waits for the page that follows."""
    element = find(driver, selector)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    driver.execute_script("window.dbtasksOldPage = true")
    element.click()
    wait_until(
        lambda: driver.execute_script(
            "return !window.dbtasksOldPage && document.readyState === 'complete'"
        ),
        PATIENCE,
        f"no page followed {selector}",
    )


def text(driver: Any, selector: str = "#content") -> str:
    return str(driver.execute_script("return arguments[0].innerText", find(driver, selector)))


def eventually(driver: Any, selector: str, part: str) -> None:
    wait_until(
        lambda: part in text(driver, selector), PATIENCE, f"{part!r} did not come to {selector}"
    )


def test_from_the_headline_to_a_retry(visit: Callable[[str], Any], engine: Engine) -> None:
    """What one does at three in the morning: see, look at one, run all of them again."""
    engine.renew_lease(node())
    ids = [failed(engine, error="shop.Broken", task_path="shop.tasks.charge") for _ in range(3)]
    driver = visit("/admin/dbtasks/")
    click(driver, f"a[href='{DASHBOARD}']")
    assert "shop.Broken" in text(driver)
    click(driver, "#dbtasks-newest-1")
    assert "shop.Broken: no" in text(driver)
    driver.back()
    click(driver, "#dbtasks-retry-1")
    assert "3 failed" in text(driver)
    click(driver, "#content input[type=submit]")
    assert "3 tasks retried." in text(driver, "ul.messagelist")
    assert {stored(id).status for id in ids} == {"READY"}
    assert complaints(driver) == []


def test_a_selection_is_counted_asked_about_and_done(
    visit: Callable[[str], Any], engine: Engine
) -> None:
    ids = put(engine, *(new_task() for _ in range(3)))
    driver = visit(LIST)
    find(driver, "[data-dbtasks-all]").click()
    assert text(driver, "[data-dbtasks-count]") == "3 selected"
    find(driver, f"input[value='{uuid.UUID(ids[0])}']").click()
    assert text(driver, "[data-dbtasks-count]") == "2 selected"
    click(driver, "button[formaction*='operate/delete/']")
    assert "2 ready" in text(driver)
    assert ScheduledTask.objects.count() == 3
    click(driver, "#content input[type=submit]")
    assert "2 tasks deleted." in text(driver, "ul.messagelist")
    assert [row.id.hex for row in ScheduledTask.objects.all()] == [ids[0]]
    assert complaints(driver) == []


def test_a_double_click_acts_once(visit: Callable[[str], Any], engine: Engine) -> None:
    id = failed(engine)
    driver = visit(f"{LIST}operate/retry/?id={id}")
    find(driver, "form[data-dbtasks-once]")
    sent = driver.execute_script(
        """
        const form = document.querySelector("form[data-dbtasks-once]");
        let sent = 0;
        form.addEventListener("submit", (event) => {
            if (!event.defaultPrevented) sent += 1;
            event.preventDefault();
        });
        const button = form.querySelector("input[type=submit]");
        button.click();
        button.click();
        return sent;
        """
    )
    assert sent == 1


def test_the_keyboard_is_enough(visit: Callable[[str], Any], engine: Engine) -> None:
    from selenium.webdriver.common.keys import Keys

    id = failed(engine)
    driver = visit(f"{LIST}{uuid.UUID(id)}/change/")
    retry = find(driver, "a[href*='operate/retry/']")
    driver.execute_script("window.dbtasksOldPage = true; arguments[0].focus()", retry)
    retry.send_keys(Keys.ENTER)
    wait_until(lambda: "operate/retry" in driver.current_url, PATIENCE)
    find(driver, "form[data-dbtasks-once] input[type=submit]").send_keys(Keys.ENTER)
    wait_until(lambda: stored(id).status == "READY", PATIENCE)
    eventually(driver, "ul.messagelist", "1 task retried.")


def test_the_dashboard_follows_what_happens_and_keeps_the_focus(
    visit: Callable[[str], Any], engine: Engine
) -> None:
    engine.renew_lease(node(lease=600.0))
    put(engine, new_task("email"))
    driver = visit(DASHBOARD)
    find(driver, "#dbtasks-switch-1")
    driver.execute_script("document.getElementById('dbtasks-switch-1').focus()")
    put(engine, new_task("email"), new_task("email", enqueued_at=engine.now()))
    eventually(driver, "[data-dbtasks-part=queues]", "3")
    eventually(driver, "[data-dbtasks-told]", "Live, updated at")
    assert driver.execute_script("return document.activeElement.id") == "dbtasks-switch-1"
    operations.pause(queue="email", by="ada", reason="a test")
    eventually(driver, "[data-dbtasks-part=headline]", "Queue email is paused")
    assert complaints(driver) == []


def test_the_dashboard_rests_while_it_is_hidden_or_stopped(
    visit: Callable[[str], Any], engine: Engine
) -> None:
    driver = visit(DASHBOARD)
    driver.execute_script(
        """
        window.looks = 0;
        const original = window.fetch;
        window.fetch = (...args) => { window.looks += 1; return original(...args); };
        window.hide = (hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        };
        // What would be asked while it rests is what its timers would do: none may be left.
        window.timers = new Set();
        const set = window.setTimeout, clear = window.clearTimeout;
        window.setTimeout = (action, delay) => {
            const id = set(() => { window.timers.delete(id); action(); }, delay);
            window.timers.add(id);
            return id;
        };
        window.clearTimeout = (id) => { window.timers.delete(id); clear(id); };
        """
    )

    def looks() -> int:
        return int(driver.execute_script("return window.looks"))

    def timers() -> int:
        return int(driver.execute_script("return window.timers.size"))

    driver.execute_script("window.hide(false)")
    wait_until(lambda: looks() > 0, PATIENCE, "it did not look")
    driver.execute_script("window.hide(true)")
    wait_until(lambda: timers() == 0, PATIENCE, "it goes on while it is hidden")
    before = looks()
    driver.execute_script("window.hide(false)")
    wait_until(lambda: looks() > before, PATIENCE, "it did not go on")
    find(driver, "[data-dbtasks-live] button").click()
    wait_until(lambda: timers() == 0, PATIENCE, "it goes on although it was stopped")
    assert text(driver, "[data-dbtasks-told]").startswith("Stopped; as of ")


def test_an_open_dashboard_says_that_it_is_signed_out(
    visit: Callable[[str], Any], engine: Engine
) -> None:
    driver = visit(DASHBOARD)
    find(driver, "[data-dbtasks-live] button")
    driver.delete_all_cookies()
    eventually(driver, "[data-dbtasks-told]", "you are signed out")
    assert text(driver, "[data-dbtasks-told]").startswith("Not updated since ")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_fit_a_narrow_screen_in_both_themes(
    visit: Callable[[str], Any], engine: Engine, theme: str
) -> None:
    engine.renew_lease(node())
    long = "a_rather_long_module_name." * 4 + "and_a_function_with_a_long_name"
    id = failed(engine, task_path=long, queue="q" * 100)
    put(engine, new_task("q" * 100, task_path=long))
    for path in (
        DASHBOARD,
        LIST,
        f"{LIST}?state=failed",
        f"{LIST}{uuid.UUID(id)}/change/",
        f"{LIST}operate/retry/?id={id}",
        f"{LIST}switch/pause/?queue={'q' * 100}",
    ):
        driver = visit(path)
        driver.execute_script("localStorage.setItem('theme', arguments[0])", theme)
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": NARROW, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        try:
            visit(path)
            assert driver.execute_script("return innerWidth") == NARROW, path
            assert driver.execute_script(OVERFLOW) <= 0, path
        finally:
            driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_rows_run_nothing(visit: Callable[[str], Any], engine: Engine) -> None:
    id = failed(engine, task_path=EVIL, queue=EVIL)
    ScheduledTask.objects.filter(pk=id).update(
        args=[EVIL], errors=[{"exception_class_path": "E", "traceback": EVIL}], worker_ids=[EVIL]
    )
    put(engine, new_task(EVIL, task_path=EVIL))
    operations.pause(queue=EVIL, by=EVIL, reason=EVIL)
    for path in (
        DASHBOARD,
        LIST,
        f"{LIST}{uuid.UUID(id)}/change/",
        f"{LIST}operate/retry/?id={id}",
    ):
        driver = visit(path)  # an alert would make the next command fail
        assert driver.execute_script("return document.querySelectorAll('img').length") == 0, path
        assert complaints(driver) == [], path
    driver = visit(DASHBOARD)
    put(engine, new_task("news"))
    eventually(driver, "[data-dbtasks-part=queues]", "news")
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
