"""The page as it is served, with networks that learned sentences by heart and their index."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.sample.page.conftest import serve_command, visiting
from tests.sample.page.test_looks import TOO_WIDE, hold_contrast
from tests.sample.traced import SENTENCES, make_traced_runs

GREEDY = ["--temperature", "0", "--max-new-tokens", "60"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    make_traced_runs(folder)
    return folder


@pytest.fixture(scope="module")
def address(place: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with serve_command(place, request.param, *GREEDY) as address:
        yield address


@pytest.mark.parametrize("address", ["talk"], indirect=True)
@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_answer_leads_to_the_document_that_it_was_read_in(
    browser: Browser, address: str, theme: str, width: int, tmp_path: Path
) -> None:
    size: Any = {"width": width, "height": 740}
    with visiting(browser, address, viewport=size, color_scheme=theme) as visit:
        page = visit.page
        expect(visit.prompt).to_have_attribute("placeholder", "Ask something")
        visit.say("Who turns it?")
        visit.hear(SENTENCES[1])
        expect(visit.last.locator(".source")).to_have_text([SENTENCES[1]])
        expect(visit.messages.last).to_contain_text("100% stands word for word")
        page.screenshot(path=tmp_path / "answer.png")
        visit.last.locator(".source").click()
        panel = page.get_by_role("region", name="Where this stands")
        first, second, _ = panel.get_by_role("listitem").all()
        expect(first.locator(".document")).to_contain_text("mill<b>.txt")
        expect(first).to_contain_text(f"{SENTENCES[0]} {SENTENCES[1]} {SENTENCES[2]}")
        expect(second.locator(".document")).to_contain_text("talks.jsonl, line ")
        expect(second).to_contain_text(f"Who turns it? {SENTENCES[1]}")
        page.screenshot(path=tmp_path / "panel.png")
        hold_contrast(visit)
        assert page.evaluate(TOO_WIDE) == []
        page.keyboard.press("Escape")
        visit.button("Settings").click()
        page.get_by_role("checkbox", name="Show sources").scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "settings.png")


@pytest.mark.parametrize("address", ["base"], indirect=True)
def test_what_a_base_model_continues_is_traced_too(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    with visiting(browser, address) as visit:
        visit.say("The quern ")
        marks = visit.last.locator(".source")
        expect(marks.first).to_contain_text("turns grain into flour.")
        expect(visit.messages.last).to_contain_text("% stands word for word")
        marks.first.hover()
        expect(visit.page.locator("#sources")).to_contain_text("mill<b>.txt")
        visit.page.screenshot(path=tmp_path / "base.png")
