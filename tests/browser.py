"""A headless Chromium for the tests of pages: Debian's, with its driver, through Selenium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def missing() -> str:
    """Return what of a browser is not installed here, in words, or nothing."""
    if CHROMIUM is None or DRIVER is None:
        return "Chromium or its driver is not installed (Debian: apt-get install chromium chromium-driver)"
    try:
        import selenium as _  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return ""


class Browser:
    """A page in Chromium, and what a person does with it."""

    def __init__(self, profile: Path):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        assert CHROMIUM is not None
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def quit(self) -> None:
        """End the browser and its driver."""
        self.driver.quit()

    def resize(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Show pages at this size, below 500 pixels as on a phone, and in the system's light or dark colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 500})

    def open(self, file: Path) -> None:
        """Open a file."""
        self.driver.get(file.as_uri())

    def find(self, css: str) -> Any:
        """Return the first element that a selector finds."""
        return self.driver.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        """Return every element that a selector finds."""
        return self.driver.find_elements("css selector", css)

    def click(self, css: str) -> None:
        """Scroll to an element and click it."""
        self.run("arguments[0].scrollIntoView({ block: 'center' })", self.find(css))
        self.find(css).click()

    def press(self, css: str, *keys: str) -> None:
        """Focus an element and press keys, one after the other."""
        self.run("arguments[0].focus()", self.find(css))
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def choose(self, css: str, value: str) -> None:
        """Choose an option of a select by its value."""
        from selenium.webdriver.support.ui import Select

        Select(self.find(css)).select_by_value(value)

    def slide(self, css: str, index: int) -> None:
        """Move a slider to one of its places, the first being 0, by keys."""
        from selenium.webdriver.common.keys import Keys

        self.press(css, Keys.HOME + Keys.ARROW_RIGHT * index)

    def run(self, script: str, *given: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(script, *given)

    def errors(self) -> list[str]:
        """Return what the page has reported to the console since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
