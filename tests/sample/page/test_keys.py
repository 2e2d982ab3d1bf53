"""The page without a mouse, and how it moves while an answer comes."""

from playwright.sync_api import expect

from tests.sample.page.conftest import Visit
from tests.sample.page.server import FakeServer, Script

LINES = tuple(f"line {number}\n".encode() for number in range(200))
FOCUSED = """() => {
  const { ariaLabel, textContent, id } = document.activeElement;
  return ariaLabel || textContent.trim() || id;
}"""


def focused(visit: Visit) -> str:
    return str(visit.page.evaluate(FOCUSED))


def tab_to(visit: Visit, name: str, key: str = "Tab") -> None:
    for _ in range(40):
        if focused(visit) == name:
            return
        visit.page.keyboard.press(key)
    raise AssertionError(f"{key} never reaches {name}")


def test_a_whole_conversation_needs_no_mouse(visit: Visit, server: FakeServer) -> None:
    press, type_ = visit.page.keyboard.press, visit.page.keyboard.type
    server.scripts.extend([Script(ending="wait"), Script(), Script(tokens=(b"other",))])
    type_("Hello")  # the field has the focus from the start
    press("Enter")
    expect(visit.last).to_have_text("once upon a time")
    press("Escape")
    expect(visit.messages.last).to_contain_text("Stopped.")
    tab_to(visit, "Retry", "Shift+Tab")
    press("Enter")
    visit.hear("once upon a time")
    tab_to(visit, "Edit", "Shift+Tab")
    press("Enter")
    press("ControlOrMeta+A")
    type_("Bye")
    press("Enter")
    visit.hear("other")
    tab_to(visit, "Settings", "Shift+Tab")
    press("Enter")
    tab_to(visit, "seed")
    type_("5")
    press("Escape")
    assert focused(visit) == "Settings"
    tab_to(visit, "New chat", "Shift+Tab")
    press("Enter")
    type_("Again")
    press("Enter")
    visit.hear("once upon a time")
    assert server.received[-1]["seed"] == 5
    tab_to(visit, "Delete Bye", "Shift+Tab")
    press("Enter")
    tab_to(visit, "Undo")
    press("Enter")
    expect(visit.messages.locator(".body")).to_have_text(["Bye", "other"])


def test_the_first_stop_leads_past_the_chats_to_the_field(visit: Visit) -> None:
    tab_to(visit, "To the text field", "Shift+Tab")
    visit.page.keyboard.press("Tab")
    assert focused(visit) == "New chat"
    visit.page.keyboard.press("Shift+Tab")
    visit.page.keyboard.press("Enter")
    expect(visit.prompt).to_be_focused()


def test_every_stop_of_the_tab_key_can_be_seen(visit: Visit) -> None:
    visit.button("Tokens").click()
    visit.say("Hello")
    visit.hear("once upon a time")
    tab_to(visit, "To the text field", "Shift+Tab")
    stops = []
    while focused(visit) != "Send":
        # the field's ring is around the whole form
        ring = """() => [document.activeElement, document.activeElement.closest("#prompt-form")]
          .some((e) => e && getComputedStyle(e).outlineStyle !== "none")"""
        assert visit.page.evaluate(ring), focused(visit)
        stops.append(focused(visit))
        visit.page.keyboard.press("Tab")
    assert {"New chat", "Rename Hello", "Settings", "once", "Retry", "prompt"} <= set(stops)
    assert len(stops) == len(set(stops)) + 1  # Copy twice, and nothing else


def test_shift_enter_makes_a_line_and_enter_within_a_composition_sends_nothing(
    visit: Visit, server: FakeServer
) -> None:
    visit.page.keyboard.type("one")
    visit.page.keyboard.press("Shift+Enter")
    visit.page.keyboard.type("two")
    visit.prompt.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(visit.prompt).to_have_value("one\ntwo")
    assert server.received == []
    visit.page.keyboard.press("Enter")
    visit.hear("once upon a time")
    assert server.received[0]["messages"][0]["content"] == "one\ntwo"


def test_blanks_alone_are_not_sent_and_a_second_text_waits_for_the_answer(
    visit: Visit, server: FakeServer
) -> None:
    visit.say(" \n ")
    server.scripts.append(Script(ending="wait"))
    visit.say("First")
    expect(visit.last).to_have_text("once upon a time")
    visit.say("Second")
    expect(visit.prompt).to_have_value("Second")
    assert len(server.received) == 1


def test_the_view_follows_an_answer_only_from_the_end(visit: Visit, server: FakeServer) -> None:
    server.scripts.extend([Script(tokens=LINES), Script(tokens=LINES)])
    at_end = "e => e.scrollTop + e.clientHeight >= e.scrollHeight - 2"
    scroller = visit.page.locator("#scroller")
    visit.say("Long")
    expect(visit.last).to_contain_text("line 199")
    expect(visit.button("Send")).to_be_visible()
    assert scroller.evaluate(at_end)
    server.scripts[0] = Script(tokens=LINES, ending="wait")
    visit.say("Again")
    expect(visit.last).to_contain_text("line 199")
    scroller.evaluate("e => { e.scrollTop = 300 }")
    expect(visit.button("To the end")).to_be_visible()
    visit.page.keyboard.press("Escape")
    expect(visit.messages.last).to_contain_text("Stopped.")
    assert scroller.evaluate("e => e.scrollTop") == 300
    visit.button("To the end").click()
    assert scroller.evaluate(at_end)
    expect(visit.button("To the end")).to_be_hidden()
