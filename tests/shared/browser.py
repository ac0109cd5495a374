"""A browser without a window, as the page's tests use it: Chromium, driven by its own driver through Selenium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def opened(folder: Path) -> Iterator[Chrome]:
    """A browser that keeps what it knows in an empty folder; without one the test skips."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with its chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost")  # where the driver listens
        try:
            browser = Chrome(options, ChromeService(DRIVER))
        except WebDriverException as error:
            pytest.skip(f"the browser does not start: {(error.msg or '').splitlines()[:1]}")
        with browser:
            yield browser


def run(browser: Chrome, expression: str) -> Any:
    """The value of an expression of the page's."""
    return browser.execute_script(f"return {expression}")


def until(browser: Chrome, expression: str, seconds: float = 60.0) -> None:
    """Wait until an expression is true."""
    wait = WebDriverWait(browser, seconds, poll_frequency=0.05)
    wait.until(lambda _: run(browser, expression), f"never: {expression}")


def element(browser: Chrome, name: str) -> WebElement:
    """The one with an id."""
    return browser.find_element(By.ID, name)


def elements(browser: Chrome, selector: str) -> list[WebElement]:
    """All that a CSS selector names."""
    return browser.find_elements(By.CSS_SELECTOR, selector)


def fill(field: WebElement, text: str) -> None:
    """Type over what a field holds."""
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)


def look_as(browser: Chrome, width: int, height: int, *, is_phone: bool = False) -> None:
    """Let what is seen have a size, which on a phone is the page's to divide."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(browser: Chrome, **features: str) -> None:
    """Let the user prefer something: color_scheme="dark", reduced_motion="reduce"."""
    wanted = [
        {"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})


def complaints(browser: Chrome) -> list[str]:
    """Warnings and errors that the browser's console has said since the last call."""
    entries = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]
