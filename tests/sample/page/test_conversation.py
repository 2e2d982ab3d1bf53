"""A person talks to a model on the page: the server says what a test wants it to."""

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.sample.page.conftest import Visit
from tests.sample.page.server import FakeServer, Script

MARKUP = '<img src=x onerror="alert(1)"><script>alert(2)</script>&lt;b&gt;<b>bold</b>'
SOON_S = 20


def roles_and_texts(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in body["messages"]]


def test_an_answer_is_shown_as_it_comes_and_stop_frees_the_server(
    visit: Visit, server: FakeServer
) -> None:
    server.scripts.append(Script(ending="wait"))
    visit.say("Tell")
    expect(visit.last).to_have_text("once upon a time")
    expect(visit.last).to_have_attribute("aria-busy", "true")
    visit.button("Stop").click()
    assert server.went_away.get(timeout=SOON_S)
    expect(visit.messages.last).to_contain_text("Stopped.")
    expect(visit.last).to_have_attribute("aria-busy", "false")
    visit.hear("once upon a time")


def test_the_whole_conversation_is_sent_each_time(visit: Visit, server: FakeServer) -> None:
    server.scripts.append(Script(tokens=(b" one",)))
    visit.say("First\nline")
    visit.hear("one")
    visit.say("Second")
    visit.hear("once upon a time")
    assert roles_and_texts(server.received[1]) == [
        ("user", "First\nline"), ("assistant", " one"), ("user", "Second")
    ]  # fmt: skip


def test_chats_outlive_the_page_and_the_answer_that_was_being_written(
    visit: Visit, server: FakeServer
) -> None:
    visit.say("Kept")
    visit.hear("once upon a time")
    server.scripts.append(Script(tokens=(b"half",), ending="wait"))
    visit.say("Cut")
    expect(visit.last).to_have_text("half")
    visit.reload()
    visit.page.get_by_role("navigation").get_by_text("Kept").click()
    expect(visit.messages.locator(".body")).to_have_text(
        ["Kept", "once upon a time", "Cut", "half"]
    )
    expect(visit.messages.last).to_contain_text("closed before this answer was whole")
    visit.button("Retry").click()
    visit.hear("once upon a time")


def test_retry_asks_the_same_again_and_replaces_the_answer(
    visit: Visit, server: FakeServer
) -> None:
    server.scripts.extend([Script(tokens=(b"bad",)), Script(tokens=(b"better",))])
    visit.say("Try")
    visit.hear("bad")
    visit.button("Retry").click()
    visit.hear("better")
    expect(visit.messages).to_have_count(2)
    assert server.received[0] == server.received[1]


def test_editing_drops_what_follows_and_asks_again(visit: Visit, server: FakeServer) -> None:
    for text in ("One", "Two"):
        visit.say(text)
        visit.hear("once upon a time")
    visit.button("Edit").first.click()
    field = visit.page.get_by_role("textbox", name="Edit your text")
    expect(field).to_have_value("One")
    field.fill("Uno")
    field.press("Enter")
    visit.hear("once upon a time")
    expect(visit.messages.locator(".body")).to_have_text(["Uno", "once upon a time"])
    assert roles_and_texts(server.received[-1]) == [("user", "Uno")]


def test_an_edit_can_be_given_up(visit: Visit, server: FakeServer) -> None:
    visit.say("One")
    visit.hear("once upon a time")
    visit.button("Edit").click()
    visit.page.keyboard.type("changed")
    visit.page.keyboard.press("Escape")
    expect(visit.messages.locator(".body")).to_have_text(["One", "once upon a time"])
    assert len(server.received) == 1


def test_copy_gives_exactly_the_text(visit: Visit, server: FakeServer) -> None:
    text = "  if x:\n\t\treturn  \u00fc \U0001f33e\n\n"
    server.scripts.append(Script(tokens=(text.encode(),)))
    visit.say("Code")
    expect(visit.button("Send")).to_be_visible()
    visit.messages.last.get_by_role("button", name="Copy").click()
    expect(visit.page.get_by_role("status")).to_have_text("Copied.")
    assert visit.page.evaluate("navigator.clipboard.readText()") == text
    assert visit.last.evaluate("body => body.textContent") == text


def test_copy_works_where_the_browser_gives_no_clipboard(visit: Visit, server: FakeServer) -> None:
    visit.say("Plain HTTP from another machine")
    visit.hear("once upon a time")
    visit.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    visit.messages.last.get_by_role("button", name="Copy").click()
    expect(visit.page.get_by_role("status")).to_have_text("Copied.")
    visit.prompt.press("Control+V")
    expect(visit.prompt).to_have_value("once upon a time")


def test_markup_of_anybody_is_text(visit: Visit, server: FakeServer) -> None:
    server.card["name"] = server.card["warning"] = MARKUP
    visit.reload()
    visit.button("Tokens").click()
    server.scripts.append(Script(tokens=(MARKUP[:9].encode(), MARKUP[9:].encode())))
    visit.say(MARKUP)
    visit.hear(MARKUP)
    visit.button("Model").click()
    expect(visit.page.get_by_role("dialog").get_by_role("heading").first).to_have_text(MARKUP)
    visit.page.keyboard.press("Escape")
    visit.page.locator(".token", has_text="img").hover()
    expect(visit.page.get_by_role("tooltip")).to_contain_text("<img")
    visit.button(f"Rename {MARKUP[:60]}...").click()
    visit.page.keyboard.press("Enter")
    visit.reload()
    visit.page.get_by_role("navigation").get_by_role("button").first.click()
    expect(visit.messages.locator(".body")).to_have_text([MARKUP, MARKUP])
    assert visit.page.locator("img, b, body script").count() == 0


def test_the_browser_itself_refuses_to_read_text_as_html(visit: Visit) -> None:
    refused = "() => { try { document.body.innerHTML = '<b>'; } catch (e) { return e.name; } }"
    assert visit.page.evaluate(refused) == "TypeError"
    assert any("TrustedHTML" in line or "Trusted Type" in line for line in visit.objections)
    visit.objections.clear()  # they were this test's


@pytest.mark.parametrize(
    ("script", "kept", "sentence"),
    [
        (Script(status=429, retry_after="7"), "", "Try again in 7 seconds"),
        (Script(status=500, error="The engine broke."), "", "server failed: The engine broke."),
        (Script(status=400, error="top_k is -1."), "", "server refused: top_k is -1."),
        (Script(ending="cut"), "once upon a time", "cut before the answer was whole"),
        (Script(ending="error", error="No memory."), "once upon a time", "broke off: No memory."),
    ],
    ids=["busy", "fault", "refusal", "cut", "fault in mid-answer"],
)
def test_a_failure_is_said_in_words_what_came_is_kept_and_retry_goes_on(
    visit: Visit, server: FakeServer, script: Script, kept: str, sentence: str
) -> None:
    server.scripts.append(script)
    visit.say("Go")
    expect(visit.page.get_by_role("alert")).to_contain_text(sentence)
    expect(visit.last).to_have_text(kept)
    visit.reload()
    visit.page.get_by_role("navigation").get_by_text("Go").click()
    expect(visit.page.get_by_role("alert")).to_contain_text(sentence)
    expect(visit.last).to_have_text(kept)
    visit.button("Retry").click()
    visit.hear("once upon a time")
    expect(visit.page.get_by_role("alert")).to_have_count(0)
    assert roles_and_texts(server.received[-1]) == [("user", "Go")]


def test_a_server_that_is_gone_is_said_in_words(visit: Visit, server: FakeServer) -> None:
    server.shutdown()
    server.server_close()
    visit.say("Anybody?")
    expect(visit.page.get_by_role("alert")).to_contain_text("cannot be reached")


def test_what_had_no_room_in_the_context_is_said(visit: Visit, server: FakeServer) -> None:
    server.scripts.append(Script(notices=("The oldest 2 turns had no room in the context.",)))
    visit.say("Long")
    visit.hear("once upon a time")
    expect(visit.messages.last).to_contain_text("The oldest 2 turns had no room")


def test_several_chats_are_chosen_renamed_and_deleted(visit: Visit, server: FakeServer) -> None:
    chats = visit.page.get_by_role("navigation").get_by_role("listitem")
    for text in ("Alpha", "Beta"):
        visit.button("New chat").click()
        visit.say(text)
        visit.hear("once upon a time")
    expect(chats).to_have_text(["Beta", "Alpha"])
    visit.button("Alpha").click()
    expect(visit.messages.locator(".body").first).to_have_text("Alpha")
    visit.button("Rename Alpha").click()
    visit.page.keyboard.type("Gamma")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Gamma")
    visit.button("Beta").hover()  # its buttons show
    visit.button("Delete Beta").click()
    expect(chats).to_have_text(["Gamma"])
    visit.button("Undo").click()
    expect(chats).to_have_text(["Beta", "Gamma"])
    visit.button("Delete Beta").click()
    visit.reload()
    expect(chats).to_have_text(["Gamma"])


def test_an_answer_goes_on_while_another_chat_is_shown(visit: Visit, server: FakeServer) -> None:
    server.scripts.append(Script(tokens=(b"slow",), ending="wait"))
    visit.say("First")
    expect(visit.last).to_have_text("slow")
    visit.button("New chat").click()
    visit.say("Second")
    visit.hear("once upon a time")
    visit.button("First").click()
    expect(visit.last).to_have_text("slow")
    visit.button("Stop").click()
    expect(visit.messages.last).to_contain_text("Stopped.")
    visit.button("Second").click()
    visit.hear("once upon a time")


def test_a_chat_deleted_while_it_is_answered_stays_deleted(
    visit: Visit, server: FakeServer
) -> None:
    server.scripts.append(Script(ending="wait"))
    visit.say("Doomed")
    expect(visit.last).to_have_text("once upon a time")
    visit.button("Delete Doomed").click()
    assert server.went_away.get(timeout=SOON_S)
    expect(visit.page.get_by_role("heading", name="Begin a text")).to_be_visible()
    visit.reload()
    expect(visit.page.get_by_role("navigation").get_by_role("listitem")).to_have_count(0)


def test_another_tab_shows_what_this_one_keeps(visit: Visit, server: FakeServer) -> None:
    other = visit.open()
    visit.say("Hello")
    visit.hear("once upon a time")
    other.get_by_role("button", name="Hello", exact=True).click()
    expect(other.locator("#transcript .body")).to_have_text(["Hello", "once upon a time"])


def test_a_text_that_is_edited_stays_while_another_tab_is_answered(
    visit: Visit, server: FakeServer
) -> None:
    visit.say("Mine")
    visit.hear("once upon a time")
    other = visit.open()
    visit.button("Edit").click()
    field = visit.page.get_by_role("textbox", name="Edit your text")
    field.fill("Half of an edit")
    chats = visit.page.get_by_role("navigation").get_by_role("listitem")
    for text, button in (("Theirs", None), ("On", "Mine")):  # in another chat, then in the same
        if button:
            other.get_by_role("button", name=button, exact=True).click()
        other.get_by_role("textbox", name="Your text").fill(text)
        other.keyboard.press("Enter")
        expect(other.get_by_role("button", name="Retry")).to_be_visible()
        expect(chats).to_have_count(2)
        expect(field).to_have_value("Half of an edit")
    expect(chats).to_have_text(["Mine", "Theirs"])
    field.press("Enter")
    visit.hear("once upon a time")
    assert roles_and_texts(server.received[-1]) == [("user", "Half of an edit")]


def test_settings_reach_the_request_and_are_kept(visit: Visit, server: FakeServer) -> None:
    visit.say("Defaults")
    visit.hear("once upon a time")
    sent = server.received[-1]
    assert {name: sent[name] for name in server.card["defaults"]} == server.card["defaults"]
    assert "seed" not in sent
    assert sent["model"] == "quern"
    visit.button("Settings").click()
    dialog = visit.page.get_by_role("dialog", name="Settings")
    dialog.get_by_role("slider", name="Temperature").press("Home")
    dialog.get_by_role("slider", name="Top-p").press("End")
    for name, value in (("Top-k", "40"), ("Max tokens", "7"), ("Seed", "11")):
        dialog.get_by_role("spinbutton", name=name).fill(value)
    dialog.get_by_role("textbox", name="System text").fill("Be brief.")
    visit.page.keyboard.press("Escape")
    visit.reload()
    visit.say("Changed")
    visit.hear("once upon a time")
    wanted = {"temperature": 0, "top_p": 1, "top_k": 40, "max_tokens": 7, "seed": 11}
    assert {name: server.received[-1][name] for name in wanted} == wanted
    assert roles_and_texts(server.received[-1]) == [("system", "Be brief."), ("user", "Changed")]
    visit.button("Settings").click()
    visit.button("Back to the defaults").click()
    expect(dialog.get_by_role("spinbutton", name="Top-k")).to_have_value("0")
    visit.button("Close the settings").click()
    visit.button("Retry").click()
    visit.hear("once upon a time")
    assert server.received[-1] == sent | {"messages": [{"role": "user", "content": "Changed"}]}


@pytest.mark.parametrize("typed", ["-3", "1.5", "1e99"])
def test_a_setting_out_of_range_is_said_and_not_used(
    visit: Visit, server: FakeServer, typed: str
) -> None:
    visit.button("Settings").click()
    field = visit.page.get_by_role("spinbutton", name="Top-k")
    field.fill("5")
    field.fill(typed)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(re.compile("from 0 to 1000000.*not used"))
    visit.page.keyboard.press("Escape")
    visit.say("Go")
    visit.hear("once upon a time")
    assert server.received[-1]["top_k"] == 5


def test_the_key_is_asked_for_and_kept_for_the_tab_only(visit: Visit, server: FakeServer) -> None:
    server.key = "open sesame"
    visit.page.reload()
    key = visit.page.get_by_label("Key", exact=True)
    for given in ("wrong", "open sesame"):
        key.fill(given)
        key.press("Enter")
    expect(visit.page.get_by_role("dialog")).to_have_count(0)
    visit.say("In")
    visit.hear("once upon a time")
    visit.reload()
    visit.say("Still in")
    visit.hear("once upon a time")
    assert "sesame" not in visit.page.evaluate("JSON.stringify(localStorage)")
    server.key = "changed"
    visit.say("Out")
    key.fill("changed")
    key.press("Enter")
    visit.hear("once upon a time")


def test_damaged_entries_do_not_break_the_page_and_stay_where_they_are(
    visit: Visit, server: FakeServer
) -> None:
    visit.say("Sound")
    visit.hear("once upon a time")
    damaged = {
        "quern.chat.a": "{", "quern.chat.b": "null", "quern.chat.c": '{"messages": [{"role": 1}]}',
        "quern.settings": "[[", "quern.tokens": '"x"', "quern.theme": '"no such"',
    }  # fmt: skip
    put = "entries => { for (const [k, v] of Object.entries(entries)) localStorage[k] = v }"
    visit.page.evaluate(put, damaged)
    visit.reload()
    expect(visit.page.get_by_role("status")).to_contain_text("3 of the kept chats cannot be read")
    expect(visit.page.get_by_role("navigation").get_by_role("listitem")).to_have_text(["Sound"])
    visit.say("Goes on")
    visit.hear("once upon a time")
    assert visit.page.evaluate("localStorage['quern.chat.a']") == "{"


def test_a_full_browser_is_said_and_the_chat_goes_on(visit: Visit, server: FakeServer) -> None:
    visit.page.evaluate(
        """() => {
          for (let size = 4e6; size >= 1; size = Math.floor(size / 2))
            try { for (let i = 0; ; i++) localStorage[`other.${size}.${i}`] = "x".repeat(size); }
            catch { continue; }
        }"""
    )
    visit.say("No room")
    expect(visit.page.get_by_role("status")).to_contain_text("The browser has no room")
    visit.hear("once upon a time")
    visit.say("Goes on")
    visit.hear("once upon a time")
    assert len(server.received[-1]["messages"]) == 3


@pytest.mark.parametrize("others", [["Other"], []], ids=["of another chat first", "its own"])
def test_probabilities_are_given_up_before_the_text_is(
    visit: Visit, server: FakeServer, others: list[str]
) -> None:
    visit.button("Tokens").click()
    for text in [*others, "Long"]:
        visit.button("New chat").click()
        visit.say(text)
        visit.hear("once upon a time")
    leave_room_for_half_a_chat(visit)
    visit.say("More")
    visit.hear("once upon a time")
    visit.reload()
    tokens = visit.page.locator("#transcript .token")
    for text in others:
        visit.button(text).click()
        expect(visit.messages.locator(".body")).to_have_text([text, "once upon a time"])
        expect(tokens).to_have_count(0)
    visit.button("Long").click()
    expect(visit.messages.locator(".body")).to_have_text(
        ["Long", "once upon a time", "More", "once upon a time"]
    )
    expect(tokens).to_have_count(8 if others else 0)


def leave_room_for_half_a_chat(visit: Visit) -> None:
    visit.page.evaluate(
        """() => {
          const { length } = Object.values(localStorage).find((value) => value.includes("Long"));
          localStorage.x = "";
          for (let step = 4e6; step >= 1; step = Math.floor(step / 2))
            try { for (;;) localStorage.x += "x".repeat(step); } catch { continue; }
          localStorage.x = localStorage.x.slice(Math.floor(length / 2));
        }"""
    )
