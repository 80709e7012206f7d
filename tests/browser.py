"""A headless Chromium that remembers what its console said and what it asked of the network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def missing() -> str | None:
    """Why there is no browser, None where there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "needs selenium (the extra `test`)"
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)):
        if not any(shutil.which(name) for name in names):
            return f"needs {' or '.join(names)} on the PATH"
    return None


class Browser:
    """One browser; width and height of its window in CSS pixels."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = next(
            path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))
        )
        for flag in FLAGS:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.look()

    def look(self, width: int = 1280, height: int = 900, *, dark: bool = False, phone: bool = False) -> None:
        """Sets the window, the theme that the system prefers, and whether it is a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, path: Path) -> None:
        """Opens a report and waits until it has drawn itself."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.absolute().as_uri())
        self.wait("return !!window.memsim || !document.getElementById('failed').hidden")

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript and gives what it returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 30) -> None:
        """Waits until a script gives something true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Clicks an element as a person would, and waits for the drawing that follows."""
        element = self.driver.find_element("css selector", selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()
        self.settle()

    def choose(self, selector: str, value: str) -> None:
        """Chooses an option of a menu."""
        from selenium.webdriver.support.select import Select

        Select(self.driver.find_element("css selector", selector)).select_by_value(value)
        self.settle()

    def settle(self) -> None:
        """Waits until the charts have been drawn."""
        self.wait("return !window.memsim || !(window.memsim.charts || window.memsim.comparison || {}).busy")

    def complaints(self) -> list[str]:
        """What the console said since the page was opened."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What was asked of the network since the page was opened, the page itself included."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]

    def photograph(self, path: Path, height: int | None = None) -> None:
        """Writes the page as PNG: all of it, or its top."""
        width, whole = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height or whole, whole), "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(shot["data"]))

    def quit(self) -> None:
        """Ends the browser."""
        self.driver.quit()


def start() -> Browser:
    """A Browser; the test is skipped where there is none, or fails with MEMSIM_REQUIRE_BROWSER=1."""
    reason = missing()
    if reason and os.environ.get("MEMSIM_REQUIRE_BROWSER") == "1":
        pytest.fail(f"MEMSIM_REQUIRE_BROWSER=1, but there is no browser: {reason}")
    if reason:
        pytest.skip(f"no browser: {reason}")
    return Browser()
