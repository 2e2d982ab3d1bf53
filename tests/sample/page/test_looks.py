"""What the page looks like: both themes, narrow screens, names for those who do not see it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.sample.page.conftest import Visit, visiting
from tests.sample.page.server import FakeServer, Script

LEAST_CONTRAST = 4.5  # of WCAG 2.2, 1.4.3, for text of any size
# Every text that is seen, with the colours that end up in front and behind; a canvas knows
# whatever way CSS has of writing a colour.
COLOURS = """() => {
  const SEEN = { visibilityProperty: true, opacityProperty: true };
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], below) =>
    [r, g, b].map((value, i) => (value * a) / 255 + below[i] * (1 - a / 255));
  const ground = (element) => {
    const below = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
    return over(rgba(getComputedStyle(element).backgroundColor), below);
  };
  const modal = document.querySelector("dialog:modal");
  const found = [];
  const walker = document.createTreeWalker(modal ?? document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility(SEEN)) continue;
    if (element.closest(".unseen, noscript, script")) continue;
    const behind = ground(element);
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    found.push([text.slice(0, 40), over(rgba(colour), behind), behind]);
  }
  return found;
}"""
# What sticks out to the right, where nothing may be scrolled sideways; the names of chats are cut.
TOO_WIDE = """() => [document.scrollingElement, ...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility({ visibilityProperty: true }))
  .filter((e) => !e.closest(".unseen, svg, .chat > *"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5
    || (/auto|scroll/.test(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1))
  .map((e) => e.outerHTML.slice(0, 100))"""
LONG = ("x" * 400).encode(), b" \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d\n\tcode = 1"


def luminance(colour: list[float]) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (each / 255 for each in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(front: list[float], behind: list[float]) -> float:
    light, dark = sorted((luminance(front), luminance(behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def hold_contrast(visit: Visit) -> None:
    colours: list[Any] = visit.page.evaluate(COLOURS)
    assert colours
    for text, front, behind in colours:
        assert contrast(front, behind) >= LEAST_CONTRAST, (text, front, behind)


def panels(visit: Visit, server: FakeServer) -> Iterator[str]:
    """Go through everything that the page can show."""
    yield "welcome"
    server.scripts.extend(
        [Script(tokens=LONG, logprob=-9.0, notices=("A notice.",)), Script(status=429)]
    )
    visit.button("Tokens").click()
    for text in ("First " + "long " * 30 + "y" * 200, "Second"):
        visit.say(text)
        expect(visit.button("Send")).to_be_visible()
        expect(visit.messages.last.locator(".note").last).to_have_count(1)
    expect(visit.page.get_by_role("alert")).to_be_visible()
    visit.page.locator("#transcript .token").first.focus()
    expect(visit.page.get_by_role("tooltip")).to_be_visible()
    yield "tokens"
    visit.page.keyboard.press("Escape")
    visit.button("Tokens").click()
    yield "chat"
    visit.button("Edit").first.click()
    yield "edit"
    visit.page.keyboard.press("Escape")
    for name, close in (("Model", "Close the model card"), ("Settings", "Close the settings")):
        visit.button(name).click()
        expect(visit.page.get_by_role("dialog")).to_be_visible()
        yield name
        visit.button(close).click()
    if visit.button("Chats").is_visible():
        visit.button("Chats").click()
        expect(visit.button("New chat")).to_be_focused()
        yield "drawer"
        visit.page.keyboard.press("Escape")
        expect(visit.button("Chats")).to_be_focused()


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read_and_nothing_sticks_out(
    browser: Browser, server: FakeServer, theme: str, width: int, tmp_path: Any
) -> None:
    size = {"width": width, "height": 740}
    with visiting(browser, server.address, viewport=size, color_scheme=theme) as visit:
        for panel in panels(visit, server):
            visit.page.screenshot(path=tmp_path / f"{theme}-{width}-{panel}.png")
            if panel != "drawer":  # what is beside it is dimmed on purpose
                hold_contrast(visit)
            assert visit.page.evaluate(TOO_WIDE) == [], panel


def test_the_measure_of_contrast_is_the_one_of_wcag() -> None:
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21.0)
    assert contrast([118, 118, 118], [255, 255, 255]) == pytest.approx(4.54, abs=0.01)


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_kept(visit: Visit) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(29, 28, 26)"
    assert visit.page.evaluate(ground) == light
    visit.page.emulate_media(color_scheme="dark")
    assert visit.page.evaluate(ground) == dark
    visit.page.get_by_role("radio", name="Light").check()
    assert visit.page.evaluate(ground) == light
    visit.reload()
    assert visit.page.evaluate(ground) == light
    expect(visit.page.get_by_role("radio", name="Light")).to_be_checked()
    visit.page.get_by_role("radio", name="System").check()
    assert visit.page.evaluate(ground) == dark


def test_the_theme_is_there_before_anything_is_drawn(visit: Visit) -> None:
    visit.page.get_by_role("radio", name="Dark").check()
    visit.page.route("**/page.js", lambda route: route.abort())  # only what the head does
    visit.page.reload()
    assert visit.page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_everything_that_can_be_used_has_a_name(browser: Browser, server: FakeServer) -> None:
    with visiting(browser, server.address, viewport={"width": 360, "height": 740}) as visit:
        seen = set()
        for _ in panels(visit, server):
            used = "button, input, textarea, dialog, nav, aside, section"
            for control in visit.page.locator(used).filter(visible=True).all():
                expect(control).to_have_accessible_name(re.compile(r"\S"))
                seen.add(control.evaluate("e => e.id || e.className"))
        assert {"close-sidebar", "send", "seed", "close-card", "strong"} <= seen


def test_a_program_that_reads_aloud_finds_the_parts(visit: Visit, server: FakeServer) -> None:
    visit.say("Hello")
    visit.hear("once upon a time")
    expect(visit.page.locator("body")).to_match_aria_snapshot(
        """
        - complementary "Chats":
          - button "New chat"
          - navigation "Kept chats"
          - group "Theme"
        - main:
          - heading "Hello" [level=1]
          - region "Conversation":
            - list:
              - listitem:
                - text: "You: Hello"
                - button "Copy"
                - button "Edit"
              - listitem:
                - text: "The model: once upon a time"
                - button "Copy"
                - button "Retry"
          - textbox "Your text"
          - button "Send"
        """
    )
    assert visit.page.locator("html").get_attribute("lang") == "en"
    expect(visit.last).to_have_attribute("aria-live", "polite")


def test_each_line_runs_in_the_direction_of_its_own_script(
    visit: Visit, server: FakeServer
) -> None:
    server.scripts.append(Script(tokens=("\u05e9\u05dc\u05d5\u05dd\nleft".encode(),)))
    visit.say("\u05de\u05d4")
    expect(visit.last).to_contain_text("left")
    ends = """body => [0, 1].map((line) => {
      const range = document.createRange();
      const text = body.firstChild;
      const [from, to] = line === 0 ? [0, 4] : [5, 9];
      range.setStart(text, from);
      range.setEnd(text, to);
      const box = range.getBoundingClientRect();
      const whole = body.getBoundingClientRect();
      return [box.left - whole.left, whole.right - box.right].map(Math.round);
    })"""
    (hebrew_left, hebrew_right), (latin_left, latin_right) = visit.last.evaluate(ends)
    assert hebrew_right <= 1 < hebrew_left
    assert latin_left <= 1 < latin_right
