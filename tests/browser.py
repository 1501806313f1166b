"""Chromium, driven through its DevTools protocol, for tests of pages."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    why = "pip install -e '.[browser]' for the tests of pages"
    api = pytest.importorskip("playwright.sync_api", reason=why)
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on PATH")
    with api.sync_playwright() as play:
        # as root, in a container, Chromium's own sandbox does not start
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page in a window of its own, and all that went wrong in it."""

    def __init__(self, browser: Any, path: Path, **how: Any):
        size = {"width": how.pop("width", 1000), "height": how.pop("height", 900)}
        self.context = browser.new_context(viewport=size, **how)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._told)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.resolve().as_uri())

    def _told(self, message: Any) -> None:
        own = "getImageData" in message.text  # of a test that looks at a canvas
        if message.type in ("error", "warning") and not own:
            self.wrong.append(message.text)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def until(self, condition: str) -> None:
        """Waits for a condition in JavaScript, asked from outside the page's policy."""
        end = time.monotonic() + 30
        while not self._holds(condition):
            assert time.monotonic() < end, f"never came: {condition}"
            self.page.wait_for_timeout(50)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.page.evaluate(condition))
        except Exception as error:  # the page is being loaded again
            if "context was destroyed" in str(error) or "null" in str(error):
                return False
            raise

    def set(self, selector: str, value: int) -> None:
        """Moves a slider, as its user would."""
        self.page.locator(selector).fill(str(value))
