"""The page as `python -m sample serve` serves it, with a model whose every next letter is known."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, expect

from tests.sample.page.conftest import serve_command, visiting

CIRCLE = "abcdefgh"
SOON_S = 20
N_ENDLESS = 1_000_000  # tokens: minutes of any machine's work


@pytest.fixture(scope="module")
def address(workplace: Path) -> Iterator[str]:
    """Serve the run that writes a to h in a circle."""
    options = ["--max-tokens", str(N_ENDLESS)]
    with serve_command(workplace, "circle", *options) as address:
        yield address


def metric(address: str, name: str) -> float:
    with urlopen(address + "metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))


def test_a_whole_conversation_with_a_model(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        page = visit.page
        expect(page.locator("#figures")).to_contain_text("10,000 tokens read, val loss 1.250")
        visit.button("Settings").click()
        page.get_by_role("slider", name="Temperature").press("Home")
        page.get_by_role("spinbutton", name="Max tokens").fill("10")
        page.keyboard.press("Escape")
        visit.say("abc")
        visit.hear(spun(10, after="c"))
        expect(visit.messages.last).to_contain_text("limit of tokens")
        visit.button("Retry").click()
        visit.hear(spun(10, after="c"))
        visit.button("Tokens").click()
        visit.button("Edit").click()
        page.get_by_role("textbox", name="Edit your text").fill("f")
        page.keyboard.press("Enter")
        visit.hear(spun(10, after="f"))
        tokens = page.locator("#transcript .token")
        expect(tokens).to_have_text(list(spun(10, after="f")))
        tokens.first.hover()
        expect(page.get_by_role("tooltip")).to_contain_text("g probability: 100.0%")
        visit.button("Tokens").click()
        visit.button("Model").click()
        expect(page.get_by_role("dialog")).to_contain_text("Tokens read10,000")
        page.keyboard.press("Escape")
        visit.button("New chat").click()
        visit.say("h")
        visit.hear(spun(10, after="h"))
        visit.reload()
        expect(page.get_by_role("navigation").get_by_role("listitem")).to_have_text(["h", "f"])


def test_stop_frees_the_row_that_wrote(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        visit.button("Settings").click()
        visit.page.get_by_role("spinbutton", name="Max tokens").fill(str(N_ENDLESS))
        visit.page.keyboard.press("Escape")
        visit.say("a")
        expect(visit.last).to_contain_text("bcdefgha")
        assert metric(address, "quern_rows_busy") == 1
        visit.page.keyboard.press("Escape")
        expect(visit.messages.last).to_contain_text("Stopped.")
        end_s = time.monotonic() + SOON_S
        while metric(address, "quern_rows_busy") and time.monotonic() < end_s:
            visit.page.wait_for_timeout(50)
        assert metric(address, "quern_rows_busy") == 0


def spun(n: int, *, after: str) -> str:
    """Return the ``n`` letters that follow ``after`` in the circle."""
    begin = CIRCLE.index(after) + 1
    return "".join(CIRCLE[(begin + i) % len(CIRCLE)] for i in range(n))
