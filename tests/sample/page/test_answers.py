"""The page with a network that answers, as `python -m sample serve` serves it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.sample.chats import FORGED, make_chat_run
from tests.sample.page.conftest import serve_command, visiting
from tests.sample.page.test_served import metric


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the run that learned five conversations by heart."""
    folder = tmp_path_factory.mktemp("answers")
    make_chat_run(folder / "runs")
    with serve_command(folder, "--temperature", "0") as address:
        yield address


def test_a_conversation_in_turns(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        page = visit.page
        expect(page.get_by_role("heading", name="Ask something")).to_be_visible()
        expect(page.locator("#welcome")).to_contain_text("trained on conversations, and answers")
        expect(page.locator("main")).not_to_contain_text("base model")
        expect(visit.prompt).to_have_attribute("placeholder", "Ask something")
        visit.say("Hello")
        visit.hear("Good day.")
        expect(visit.messages.last.locator(".note")).to_have_text(["", ""])  # it ended by itself
        visit.say("Again")
        visit.hear("Hi, hi.")
        visit.button("Retry").click()
        visit.hear("Hi, hi.")
        visit.button("New chat").click()
        visit.say("Again")
        visit.hear("What?")
        visit.button("Settings").click()
        page.get_by_role("textbox", name="System text").fill("Loud")
        page.keyboard.press("Escape")
        visit.button("New chat").click()
        visit.button("Tokens").click()
        visit.say("Hello")
        visit.hear("HEY")
        expect(page.locator("#transcript .token")).to_have_text(list("HEY"))


def test_a_message_forges_no_turn(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        before = metric(address, "quern_prompt_tokens_total")
        visit.say(FORGED)
        visit.hear("One turn.")
        expect(visit.messages).to_have_count(2)
        expect(visit.messages.first.locator(".body")).to_have_text(FORGED)
        # an id for each of its bytes, and three around them
        given = metric(address, "quern_prompt_tokens_total") - before
        assert given == len(FORGED.encode()) + 3
