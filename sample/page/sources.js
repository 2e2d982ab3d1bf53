// Where an answer stands in the training text: its spans underlined, and a panel with passages.
//
// A span is shown where one points at it, or has the focus on it: a press of a button keeps it.

import { byId, make, placeBeside } from "./dom.js";

const WAIT_MS = 150; // on the way to the panel the pointer leaves the span
const LONGEST = 240; // characters of a span, in the panel: the answer has them all
const MIN_IDS = 8; // tokens of a span, as in common/tracing.py

const spanOf = new WeakMap(); // an underlined element -> its span
let shown = null; // the element that the panel is about
let waiting = 0;

const panel = byId("sources");
panel.onmouseenter = () => clearTimeout(waiting);
panel.onmouseleave = () => soon(closePanel);
panel.onfocusout = left;
panel.onkeydown = (event) => {
  if (event.key !== "Escape") return;
  event.stopPropagation();
  const from = shown;
  from?.focus();
  closePanel();
};

/** Return what the server says of an answer's sources where that is whole, or else null. */
export function sourcesOf(value) {
  const isText = (each) => typeof each === "string";
  const isPassage = (each) => [each.name, each.before, each.text, each.after].every(isText);
  const isSpan = ({ start, end, n_tokens, n_found, passages }) =>
    [start, end, n_tokens, n_found].every(Number.isInteger) && passages.every(isPassage);
  try {
    const isWhole = value.n_traced <= value.n_tokens && value.spans.every(isSpan);
    return isWhole ? value : null;
  } catch {
    return null;
  }
}

/** Return a sentence on the share of an answer that stands in the training text. */
export function shareOf({ n_tokens, n_traced, spans }) {
  if (n_tokens < MIN_IDS) return `Pieces of fewer than ${MIN_IDS} tokens are not looked for.`;
  if (n_traced === 0) return "Nothing of it stands word for word in the training text.";
  const percentage = Math.min(Math.max(1, Math.round((100 * n_traced) / n_tokens)), 99);
  const share = n_traced === n_tokens ? 100 : percentage;
  const pieces = spans.length > 1 ? `, in ${spans.length} pieces` : "";
  return `${share}% stands word for word in the training text${pieces}.`;
}

/** Fill an element with a text whose spans are underlined: a character by the longest it is in. */
export function drawSources(element, text, { spans }) {
  const characters = [...text]; // as the server counts them
  const owners = characters.map(() => null);
  for (const span of spans.toReversed()) owners.fill(span, span.start, span.end);
  const pieces = [];
  characters.forEach((character, i) => {
    if (i === 0 || owners[i] !== owners[i - 1]) pieces.push({ span: owners[i], text: "" });
    pieces.at(-1).text += character;
  });
  element.replaceChildren(...pieces.map((piece) => (piece.span ? markOf(piece) : piece.text)));
  const first = element.querySelector(".source");
  if (first) first.tabIndex = 0; // the others are reached with the arrow keys
}

function markOf({ span, text }) {
  const mark = make("span", { className: "source", role: "button", tabIndex: -1 }, text);
  mark.setAttribute("aria-controls", "sources");
  spanOf.set(mark, span);
  mark.onmouseenter = () => soon(() => openPanel(mark));
  mark.onmouseleave = () => soon(closePanel);
  mark.onfocus = () => openPanel(mark);
  mark.onclick = () => openPanel(mark);
  mark.onblur = left;
  mark.onkeydown = (event) => {
    if (event.key === "Escape" && closePanel()) event.stopPropagation();
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    openPanel(mark);
    panel.focus();
  };
  return mark;
}

function soon(change) {
  clearTimeout(waiting);
  const isHeld = () => shown && [shown, panel].includes(document.activeElement);
  waiting = setTimeout(() => isHeld() || change(), WAIT_MS);
}

function left({ relatedTarget }) {
  if (relatedTarget !== panel && relatedTarget !== shown) closePanel();
}

function openPanel(mark) {
  closePanel();
  shown = mark;
  const { start, end, n_tokens, n_found, passages } = spanOf.get(mark);
  for (const other of mark.parentElement.querySelectorAll(".source")) {
    const its = spanOf.get(other);
    other.classList.toggle("shown", its.start >= start && its.end <= end);
  }
  const times = n_found === 1 ? "once" : `${n_found.toLocaleString("en")} times`;
  const head = make("p", {}, `${n_tokens} tokens, ${times} in the training text:`);
  byId("sources-text").replaceChildren(head, make("ul", {}, ...passages.map(passageOf)));
  panel.hidden = false;
  panel.scrollTop = 0;
  mark.setAttribute("aria-describedby", "sources-text"); // not the panel: its name would be read
  placePanel();
}

function passageOf({ name, line, before, text, after }) {
  const where = Number.isInteger(line) ? `, line ${line.toLocaleString("en")}` : "";
  const lines = [before.trimStart(), endsOf(text), after.trimEnd()];
  const [ahead, within, behind] = lines.map((each) => each.replace(/\s*\n\s*/g, "\n"));
  return make(
    "li",
    {},
    make("p", { className: "document" }, make("bdi", {}, name), where),
    make("p", { className: "passage", dir: "auto" }, ahead, make("mark", {}, within), behind),
  );
}

function endsOf(text) {
  const characters = [...text];
  if (characters.length <= LONGEST) return text;
  const ends = [characters.slice(0, LONGEST / 2), characters.slice(-LONGEST / 2)];
  return ends.map((end) => end.join("")).join(" ... ");
}

/** Close the panel; return whether it was open. */
export function closePanel() {
  clearTimeout(waiting);
  if (!shown) return false;
  for (const mark of shown.parentElement?.querySelectorAll(".shown") ?? [])
    mark.classList.remove("shown");
  shown.removeAttribute("aria-describedby");
  shown = null;
  panel.hidden = true;
  return true;
}

/** Put the panel beside its span, wherever that is now, or close it where that is out of sight. */
export function placePanel() {
  if (!shown) return;
  const { top, bottom } = shown.getBoundingClientRect();
  if (bottom < 0 || top > innerHeight) closePanel();
  else placeBeside(panel, shown);
}
