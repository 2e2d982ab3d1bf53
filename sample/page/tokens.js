// The answer token by token: tinted by probability, with the alternatives on hover and focus.

import { byId, make, placeBeside } from "./dom.js";

const LEAST = -100; // of a logprob: e^-100 is nothing, and JSON knows no -Infinity

/** Return OpenAI's logprobs of a token as it is kept: [bytes, logprob, [[bytes, logprob], ...]]. */
export function tokenOf(given) {
  const pair = ({ token, bytes, logprob }) => [
    bytes ?? [...new TextEncoder().encode(token)],
    Math.round(Math.max(logprob ?? LEAST, LEAST) * 1e4) / 1e4,
  ];
  return [...pair(given), (given.top_logprobs ?? []).map(pair)];
}

/** Return the tokens in groups whose bytes are whole characters; of the last, the rest may come. */
export function groupsOf(tokens) {
  const groups = [];
  let group = null;
  for (const token of tokens) {
    group ??= { tokens: [], bytes: [] };
    group.tokens.push(token);
    group.bytes.push(...token[0]);
    if (isUnfinished(group.bytes)) continue;
    groups.push(group);
    group = null;
  }
  if (group) groups.push(group);
  return groups;
}

/** Return whether bytes end within a character of UTF-8. */
export function isUnfinished(bytes) {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back];
    if ((byte & 0xc0) === 0x80) continue; // not a character's first
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back;
  }
  return false;
}

/** Return bytes as text; ignoreBOM keeps a mark that is a character here. */
export function textOf(bytes, { fatal = false } = {}) {
  return new TextDecoder("utf-8", { ignoreBOM: true, fatal }).decode(new Uint8Array(bytes));
}

/** Return a token's bytes so that blanks and halves of characters can be seen. */
export function visible(bytes) {
  try {
    const marks = { " ": "\u2423", "\n": "\u21b5", "\t": "\u21e5" };
    const text = textOf(bytes, { fatal: true });
    return text === "" ? "(end)" : text.replace(/[ \n\t]/g, (blank) => marks[blank]);
  } catch {
    return bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  }
}

/** Return a probability as people say it. */
export function percent(logprob) {
  const percentage = 100 * Math.exp(logprob);
  if (percentage < 0.01) return "<0.01%";
  return `${percentage.toFixed(percentage < 1 ? 2 : 1)}%`;
}

/** Append to element the tokens from number drawn on; return how many are drawn now. */
export function drawTokens(element, tokens, drawn, { isWhole }) {
  for (const group of groupsOf(tokens.slice(drawn))) {
    if (!isWhole && isUnfinished(group.bytes)) break;
    element.append(spanOf(group, drawn === 0));
    drawn += group.tokens.length;
  }
  return drawn;
}

function spanOf(group, isFirst) {
  const text = textOf(group.bytes);
  const logprob = group.tokens.reduce((sum, token) => sum + token[1], 0);
  const span = make("span", { className: "token", tabIndex: isFirst ? 0 : -1 }, text);
  span.style.setProperty("--p", Math.exp(logprob).toFixed(3));
  if (text.includes("\n")) span.classList.add("line-end");
  span.onmouseenter = span.onfocus = () => showTip(span, group);
  span.onmouseleave = span.onblur = hideTip;
  return span;
}

/** Let the arrow keys go from token to token, or span to span: they are one stop of the Tab key. */
export function moveBetweenTokens(event) {
  const from = event.target;
  if (event.key === "Escape") return hideTip();
  if (!from.matches(".token, .source") || event.ctrlKey || event.altKey || event.metaKey) return;
  const to = {
    ArrowRight: from.nextElementSibling,
    ArrowLeft: from.previousElementSibling,
    Home: from.parentElement.firstElementChild,
    End: from.parentElement.lastElementChild,
  }[event.key];
  if (!to) return;
  event.preventDefault();
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

let tipped = null; // the token that the tip is about

function showTip(span, group) {
  hideTip();
  tipped = span;
  const tip = byId("tip");
  tip.replaceChildren(...group.tokens.flatMap((token) => tableOf(token, group.tokens.length)));
  tip.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  placeTip();
}

/** Hide what showTip shows. */
export function hideTip() {
  byId("tip").hidden = true;
  tipped?.removeAttribute("aria-describedby");
  tipped = null;
}

function tableOf([bytes, logprob, top], nTokens) {
  const word = nTokens > 1 ? "part of a character" : "probability";
  const head = make("p", {}, make("bdi", {}, visible(bytes)), ` ${word}: ${percent(logprob)}`);
  const rows = top.map(([other, its]) => {
    const isChosen = String(other) === String(bytes);
    const bar = make("span", { className: "bar" });
    bar.style.setProperty("--p", Math.exp(its).toFixed(3));
    const cells = [make("bdi", {}, visible(other)), make("span", {}, percent(its)), bar];
    return make("li", { className: isChosen ? "chosen" : "" }, ...cells);
  });
  return [head, make("ol", { ariaLabel: "The likeliest tokens here" }, ...rows)];
}

/** Put the tip beside its token, wherever that is now. */
export function placeTip() {
  if (tipped) placeBeside(byId("tip"), tipped);
}
