"""A browser at the page, and what holds in every test: no request leaves, no error is logged."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from tests.processes import start_python
from tests.sample.page.server import FakeServer, fake_server

# As root and without a screen or a network; nothing of it changes what a page sees.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 20_000  # for what takes some 50: the machine may be busy

expect.set_options(timeout=WAIT_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def find_chromium() -> str:
    """Return the browser's path: $CHROMIUM, or what is installed."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("These tests drive Chromium, and there is none here: make setup-browser")
    return found


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        yield chromium
        chromium.close()


class Visit:
    """A person at the page, and what the browser had to object to."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.context, self.address = context, address
        self.objections: list[str] = []
        self.failed_requests: list[str] = []  # the browser's own lines on an error's status
        context.on("request", lambda request: self._stays_home(request.url))
        context.on("console", self._console)
        context.on("weberror", lambda error: self.objections.append(f"uncaught: {error.error}"))
        context.on("dialog", lambda dialog: self.objections.append(f"dialog: {dialog.message}"))
        self.page = self.open()

    def open(self) -> Page:
        """Open the page in a new tab."""
        page = self.context.new_page()
        page.goto(self.address)
        # the list of chats and the listeners are there once the module has run
        page.wait_for_function("document.activeElement.id === 'prompt'")
        return page

    def _stays_home(self, url: str) -> None:
        if not url.startswith(self.address):
            self.objections.append(f"asked for {url}")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        is_status = message.text.startswith("Failed to load resource")
        (self.failed_requests if is_status else self.objections).append(message.text)

    @property
    def prompt(self) -> Locator:
        """The field for what is said."""
        return self.page.get_by_role("textbox", name="Your text")

    @property
    def messages(self) -> Locator:
        """Everything said so far."""
        return self.page.locator("#transcript > li")

    @property
    def last(self) -> Locator:
        """The text of the last message."""
        return self.messages.last.locator(".body")

    def button(self, name: str) -> Locator:
        """Return a button by its accessible name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def say(self, text: str) -> None:
        """Type a text and send it."""
        self.prompt.fill(text)
        self.prompt.press("Enter")

    def hear(self, text: str) -> None:
        """Hold that the last answer is ``text``, and over."""
        expect(self.last).to_have_text(text, use_inner_text=True)
        expect(self.button("Send")).to_be_visible()

    def reload(self) -> None:
        """Load the page again, as F5 does."""
        self.page.reload()
        self.page.wait_for_function("document.activeElement.id === 'prompt'")


@contextmanager
def serve_command(folder: Path, *options: str) -> Iterator[str]:
    """Yield the address of `sample serve`, a process that runs in ``folder``."""
    command = ["-m", "sample", "serve", "--port", "0", *options]
    with start_python(command, folder) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    break
            else:
                raise AssertionError("".join(said))
            yield found[0]
        finally:
            process.terminate()
            process.communicate()


@contextmanager
def visiting(browser: Browser, address: str, **options: object) -> Iterator[Visit]:
    """Open the page in a browser without a past; hold at the end that nothing was objected to."""
    settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}} | options
    allowed = ["clipboard-read", "clipboard-write"]
    with browser.new_context(permissions=allowed, reduced_motion="reduce", **settings) as own:
        own.set_default_timeout(WAIT_MS)
        visit = Visit(own, address)
        yield visit
        assert visit.objections == []


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, server: FakeServer) -> Iterator[Visit]:
    with visiting(browser, server.address) as opened:
        yield opened
