"""Answers whose parts stand in the training text: underlined, with a panel of passages."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.sample.page.conftest import Visit, visiting
from tests.sample.page.server import FakeServer, Script
from tests.sample.page.test_looks import TOO_WIDE, hold_contrast

MARKUP = '<img src=x onerror="alert(1)"><b>bold</b>'
ANSWER = "A \U0001f33e quern turns grain into flour, slowly, on a stone."


def passage(name: str, text: str = "the text", line: int | None = None) -> dict[str, Any]:
    return {"name": name, "line": line, "before": "before ", "text": text, "after": " after"}


def span(text: str, *passages: dict[str, Any], n_found: int = 1) -> dict[str, Any]:
    """Return the span of ANSWER that says ``text``, a token a character."""
    start = ANSWER.index(text)
    return {"start": start, "end": start + len(text), "n_tokens": len(text), "n_found": n_found,
            "passages": list(passages)}  # fmt: skip


def sources(*spans: dict[str, Any], n_traced: int = 31) -> dict[str, Any]:
    return {"n_tokens": len(ANSWER), "n_traced": n_traced, "spans": list(spans)}


QUERN = span(
    "quern turns grain into flour", passage("docs.tar.xz/mill.txt", "quern turns", 1203),
    passage("b.txt"), n_found=1234,
)  # fmt: skip
FLOUR = span("into flour, slowly", passage("c.txt", "into flour"))
STONE = span("a stone.", passage("d.txt", "a stone."))


@pytest.fixture
def indexed(server: FakeServer) -> FakeServer:
    server.card["sources"] = True
    return server


@pytest.fixture
def visit(browser: Browser, indexed: FakeServer) -> Iterator[Visit]:
    with visiting(browser, indexed.address) as opened:
        expect(opened.page.locator("#figures")).to_contain_text("parameters")
        yield opened


def answered(visit: Visit, server: FakeServer, found: Any, text: str = ANSWER) -> Locator:
    """Have an answer written; return its underlined parts."""
    server.scripts.append(Script(tokens=(text.encode(),), sources=found))
    visit.say("Mill?")
    visit.hear(text)
    return visit.last.locator(".source")


def panel(visit: Visit) -> Locator:
    return visit.page.get_by_role("region", name="Where this stands in the training text")


def test_parts_are_underlined_and_the_panel_says_where_they_stand(
    visit: Visit, indexed: FakeServer
) -> None:
    marks = answered(visit, indexed, sources(QUERN, FLOUR, STONE))
    assert indexed.received[-1]["sources"] is True
    # each character by the longest span that it is in
    expect(marks).to_have_text(["quern turns grain into flour", ", slowly", "a stone."])
    expect(visit.messages.last).to_contain_text(
        "58% stands word for word in the training text, in 3 pieces."
    )
    expect(panel(visit)).to_be_hidden()
    marks.nth(0).hover()
    expect(panel(visit)).to_contain_text("28 tokens, 1,234 times in the training text:")
    expect(panel(visit).get_by_role("listitem")).to_have_text(
        ["docs.tar.xz/mill.txt, line 1,203before quern turns after",
         "b.txtbefore the text after"]
    )  # fmt: skip
    panel(visit).hover()  # on the way there it stays
    visit.page.wait_for_timeout(400)
    expect(panel(visit)).to_be_visible()
    marks.nth(1).hover()
    expect(panel(visit)).to_contain_text("18 tokens, once in the training text:")
    visit.page.mouse.move(5, 5)
    expect(panel(visit)).to_be_hidden()
    marks.nth(2).click()  # stays until it is left
    visit.page.mouse.move(5, 5)
    visit.page.wait_for_timeout(400)
    expect(panel(visit)).to_contain_text("d.txt")
    visit.prompt.click()
    expect(panel(visit)).to_be_hidden()


def test_the_keyboard_goes_from_part_to_part_into_the_panel_and_back(
    visit: Visit, indexed: FakeServer
) -> None:
    marks = answered(visit, indexed, sources(QUERN, FLOUR, STONE))
    press = visit.page.keyboard.press
    visit.prompt.focus()
    for _ in range(3):  # back over Retry and Copy
        press("Shift+Tab")
    expect(marks.nth(0)).to_be_focused()
    expect(panel(visit)).to_contain_text("mill.txt")
    expect(marks.nth(0)).to_have_accessible_description(re.compile("mill.txt"))
    press("ArrowRight")
    expect(panel(visit)).to_contain_text("c.txt")
    press("End")
    expect(marks.nth(2)).to_be_focused()
    press("Enter")
    expect(panel(visit)).to_be_focused()
    press("Escape")
    expect(panel(visit)).to_be_hidden()
    expect(marks.nth(2)).to_be_focused()
    press("Home")
    expect(panel(visit)).to_contain_text("mill.txt")
    press("Escape")
    expect(panel(visit)).to_be_hidden()
    press("Tab")  # Copy: the parts are one stop
    expect(visit.messages.last.get_by_role("button", name="Copy")).to_be_focused()


def test_a_tap_opens_the_panel_and_one_beside_it_closes_it(
    browser: Browser, indexed: FakeServer
) -> None:
    size = {"width": 360, "height": 740}
    with visiting(browser, indexed.address, viewport=size, has_touch=True) as visit:
        expect(visit.page.locator("#figures")).to_contain_text("parameters")
        marks = answered(visit, indexed, sources(QUERN, FLOUR, STONE))
        marks.nth(2).tap()
        expect(panel(visit)).to_contain_text("d.txt")
        panel(visit).tap()
        visit.page.wait_for_timeout(400)
        expect(panel(visit)).to_contain_text("d.txt")
        marks.nth(0).tap()
        expect(panel(visit)).to_contain_text("mill.txt")
        visit.prompt.tap()
        expect(panel(visit)).to_be_hidden()


def test_names_and_passages_are_text_whatever_they_hold(visit: Visit, indexed: FakeServer) -> None:
    evil = MARKUP + "\x1b[2J\u202e" + "n" * 5000
    stone = span("a stone.", passage(evil, evil), passage("\u05e9.txt", "\u05dd" * 9))
    marks = answered(visit, indexed, sources(stone, n_traced=8))
    marks.first.hover()
    expect(panel(visit)).to_contain_text(MARKUP)
    assert visit.page.locator("#sources img, #sources b").count() == 0
    assert len(panel(visit).inner_text()) < 6000  # of a long span the two ends
    assert visit.page.evaluate(TOO_WIDE) == []
    name = panel(visit).locator("bdi").first
    assert name.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"


@pytest.mark.parametrize(
    ("n_tokens", "words"),
    [(8, "Nothing of it stands word for word"), (7, "fewer than 8 tokens are not looked for")],
)
def test_an_answer_without_a_match_says_so_and_is_plain_text(
    visit: Visit, indexed: FakeServer, n_tokens: int, words: str
) -> None:
    answered(visit, indexed, sources(n_traced=0) | {"n_tokens": n_tokens})
    expect(visit.messages.last).to_contain_text(words)
    expect(visit.page.locator(".source")).to_have_count(0)


@pytest.mark.parametrize(
    "found", [None, {}, sources({"start": 0, "end": 5}), sources(span("a") | {"passages": [{}]})]
)
def test_without_sources_or_with_damaged_ones_the_answer_is_shown(
    visit: Visit, indexed: FakeServer, found: Any
) -> None:
    answered(visit, indexed, found)
    expect(visit.messages.last.locator(".share")).to_be_hidden()


@pytest.mark.parametrize(("traced", "words"), [(53, "100%"), (52, "98%"), (1, "2%")])
def test_all_is_said_only_of_all(
    visit: Visit, indexed: FakeServer, traced: int, words: str
) -> None:
    assert len(ANSWER) == 53
    answered(visit, indexed, sources(STONE, n_traced=traced))
    expect(visit.messages.last.locator(".share")).to_contain_text(f"{words} stands")


def test_sources_are_kept_with_the_chat_and_outlive_the_page(
    visit: Visit, indexed: FakeServer
) -> None:
    answered(visit, indexed, sources(QUERN, STONE))
    visit.reload()
    visit.button("Mill?").click()
    expect(visit.last.locator(".source")).to_have_count(2)
    visit.button("Tokens").click()
    visit.button("Tokens").click()
    expect(visit.last.locator(".source")).to_have_count(2)


def test_the_switch_turns_them_off_and_is_kept(visit: Visit, indexed: FakeServer) -> None:
    switch = visit.page.get_by_role("checkbox", name="Show sources")
    visit.button("Settings").click()
    expect(switch).to_be_checked()
    switch.uncheck()
    visit.page.keyboard.press("Escape")
    answered(visit, indexed, sources(QUERN))
    assert "sources" not in indexed.received[-1]
    visit.reload()
    visit.button("Settings").click()
    expect(switch).not_to_be_checked()
    visit.button("Back to the defaults").click()
    expect(switch).to_be_checked()


def test_where_the_server_has_no_index_the_switch_says_what_makes_one(
    browser: Browser, server: FakeServer
) -> None:
    with visiting(browser, server.address) as visit:
        answered(visit, server, sources(QUERN))
        assert "sources" not in server.received[-1]
        visit.button("Settings").click()
        expect(visit.page.get_by_role("checkbox", name="Show sources")).to_be_disabled()
        expect(visit.page.get_by_role("dialog")).to_contain_text("python -m prepare index")


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_panel_can_be_read_and_is_within_the_window(
    browser: Browser, indexed: FakeServer, theme: str, width: int, tmp_path: Any
) -> None:
    many = [
        {"start": i, "end": i + 9, "n_tokens": 9, "n_found": i + 1,
         "passages": [passage("very/long/" + "name/" * 40 + ".txt", "word " * 100, i)] * 3}
        for i in range(0, len(ANSWER) * 20 - 10, 11)
    ]  # fmt: skip
    size = {"width": width, "height": 740}
    with visiting(browser, indexed.address, viewport=size, color_scheme=theme) as visit:
        expect(visit.page.locator("#figures")).to_contain_text("parameters")
        marks = answered(visit, indexed, sources(*many), ANSWER * 20)
        for number in (0, -3, -1):
            mark = marks.nth(number)
            mark.scroll_into_view_if_needed()
            mark.hover()
            expect(mark).to_have_class("source shown")
            expect(panel(visit)).to_be_visible()
            visit.page.screenshot(path=tmp_path / f"{theme}-{width}{number}.png")
            hold_contrast(visit)
            assert visit.page.evaluate(TOO_WIDE) == []
            box, own = panel(visit).bounding_box(), mark.bounding_box()
            assert box is not None
            assert own is not None
            assert box["x"] >= 0
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= 740
            assert box["y"] >= own["y"] + own["height"] or box["y"] + box["height"] <= own["y"]
