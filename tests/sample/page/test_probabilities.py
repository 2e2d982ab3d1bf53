"""What the page makes of tokens, of a stream, and of numbers: its modules called one by one."""

import json
import math
import random
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.sample.page.conftest import Visit
from tests.sample.page.server import FakeServer, Script

TEXT = "\ufeffa \u00fc\u0436 \u6f22\u5b57 \U0001f33e\u200d\U0001f469 z"
GROUPS = """async (tokens) => {
  const { groupsOf, textOf } = await import("/tokens.js");
  return groupsOf(tokens).map((group) => [textOf(group.bytes), group.tokens.length]);
}"""
EVENTS = """async (parts) => {
  const { eventsOf } = await import("/api.js");
  const stream = new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(new Uint8Array(part));
      controller.close();
    },
  });
  const found = [];
  for await (const data of eventsOf(stream)) found.push(data);
  return found;
}"""


def cut(data: bytes, ends: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def grouped(visit: Visit, pieces: list[bytes]) -> list[tuple[str, int]]:
    tokens = [[list(piece), -1.0, []] for piece in pieces]
    return [(text, n) for text, n in visit.page.evaluate(GROUPS, tokens)]


def test_tokens_cut_anywhere_in_a_text_are_joined_to_its_characters(visit: Visit) -> None:
    data = TEXT.encode()
    drawn = random.Random(0)
    for n_cuts in (0, 1, 5, 12, len(data) - 1):
        pieces = cut(data, sorted(drawn.sample(range(1, len(data)), n_cuts)))
        groups = grouped(visit, pieces)
        assert "".join(text for text, _ in groups) == TEXT
        assert sum(n for _, n in groups) == len(pieces)


def test_each_character_of_single_bytes_is_one_group(visit: Visit) -> None:
    groups = grouped(visit, [bytes([byte]) for byte in TEXT.encode()])
    assert groups == [(character, len(character.encode())) for character in TEXT]


def test_bytes_that_are_no_text_become_what_python_makes_of_them(visit: Visit) -> None:
    drawn = random.Random(1)
    for _ in range(30):
        data = bytes(drawn.choices(b"a\x80\xbf\xc3\xe2\xf0\xff\x9f", k=12))
        groups = grouped(visit, [bytes([byte]) for byte in data])
        assert "".join(text for text, _ in groups) == data.decode("utf-8", "replace")


def test_events_are_the_same_however_the_stream_is_cut(visit: Visit) -> None:
    stream = b': hello\n\ndata: "\xe6\xbc\xa2"\n\nevent: x\ndata:a\r\ndata: b\r\n\r\ndata: cut o'
    for parts in ([stream], [bytes([byte]) for byte in stream], cut(stream, [17, 18, 40])):
        found = visit.page.evaluate(EVENTS, [list(part) for part in parts])
        assert found == ['"\u6f22"', "a\nb"]  # the last is not whole


@pytest.mark.parametrize(
    ("probability", "words"),
    [(1.0, "100.0%"), (0.5, "50.0%"), (0.0123, "1.2%"), (0.00456, "0.46%"), (1e-9, "<0.01%")],
)
def test_probabilities_are_said_in_percent(visit: Visit, probability: float, words: str) -> None:
    percent = "async (logprob) => (await import('/tokens.js')).percent(logprob)"
    assert visit.page.evaluate(percent, math.log(probability)) == words


def test_each_token_shows_its_probability_and_the_alternatives(
    visit: Visit, server: FakeServer
) -> None:
    server.scripts.append(Script(tokens=(b"grain", b" \xe6", b"\xbc\xa2", b"\n"), logprob=-0.5))
    visit.button("Tokens").click()
    expect(visit.button("Tokens")).to_have_attribute("aria-pressed", "true")
    visit.say("Mill")
    expect(visit.button("Send")).to_be_visible()
    tokens = visit.page.locator("#transcript .token")
    assert tokens.all_text_contents() == ["grain", " \u6f22", "\n"]
    tip = visit.page.get_by_role("tooltip")
    tokens.first.hover()
    expect(tip).to_contain_text("grain probability: 60.7%")  # 100 e^-0.5
    expect(tip.get_by_role("listitem")).to_have_text(
        ["grain60.7%", "\u2423never22.3%", "\u21b55.0%"]
    )
    tokens.first.focus()
    visit.page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tip).to_contain_text("20 E6 part of a character: 60.7%")
    expect(tip).to_contain_text("BC A2 part of a character: 60.7%")
    tint = tokens.nth(1).evaluate("token => token.style.getPropertyValue('--p')")
    assert float(tint) == pytest.approx(math.exp(-1.0), abs=1e-3)  # both, one after the other
    visit.page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    expect(tokens.last).to_have_attribute("aria-describedby", "tip")
    visit.page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_tokens_are_tinted_while_they_come_and_the_view_is_kept(
    visit: Visit, server: FakeServer
) -> None:
    visit.button("Tokens").click()
    server.scripts.append(Script(tokens=(b"one", b" \xc3"), ending="wait"))
    visit.say("Go")
    expect(visit.page.locator("#transcript .token")).to_have_text(["one"])
    visit.button("Stop").click()
    expect(visit.page.locator("#transcript .token")).to_have_count(2)
    visit.reload()
    visit.button("Go").click()
    expect(visit.page.locator("#transcript .token")).to_have_count(2)


def test_the_card_says_what_the_model_is(visit: Visit, server: FakeServer) -> None:
    visit.button("Model").click()
    card = visit.page.get_by_role("dialog")
    for words in (
        "base model", "continues the text", "20 are usual: undertrained", "Parameters1,116,160",
        "Tokens read3,893,248", "Val loss3.190", "Bits per byte1.671", "Context128 tokens",
    ):  # fmt: skip
        expect(card).to_contain_text(words)


@pytest.mark.parametrize("missing", ["val_loss", "defaults", "warning", "n_layer"])
def test_a_card_without_a_figure_is_shown_without_it(
    visit: Visit, server: FakeServer, missing: str
) -> None:
    server.card[missing] = None
    visit.reload()
    visit.button("Model").click()
    expect(visit.page.get_by_role("dialog")).to_contain_text("Tokens read3,893,248")
    visit.page.keyboard.press("Escape")
    visit.say("Go")
    visit.hear("once upon a time")


def test_probabilities_are_asked_for_and_kept_only_where_they_are_to_be_seen(
    visit: Visit, server: FakeServer
) -> None:
    visit.say("Kept")
    visit.hear("once upon a time")
    assert not {"logprobs", "top_logprobs"} & set(server.received[-1])
    visit.button("Tokens").click()
    expect(visit.last).to_have_text("once upon a time")  # without a tint
    visit.say("Seen")
    visit.hear("once upon a time")
    assert (server.received[-1]["logprobs"], server.received[-1]["top_logprobs"]) == (True, 5)
    entry = "Object.entries(localStorage).find(([key]) => key.startsWith('quern.chat.'))[1]"
    chat: dict[str, Any] = json.loads(visit.page.evaluate(entry))
    assert chat["title"] == "Kept"
    assert chat["messages"][0] == {"role": "user", "text": "Kept"}
    first, second = chat["messages"][1], chat["messages"][3]
    assert (first["text"], first["end"], first["tokens"]) == ("once upon a time", "stop", [])
    assert second["tokens"][1] == [
        list(b" upon"), -0.5, [[list(b" upon"), -0.5], [list(b" never"), -1.5], [[10], -3.0]]
    ]  # fmt: skip
