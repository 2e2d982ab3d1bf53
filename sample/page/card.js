// The model card: what the model is, and how it learned.

import { byId, make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [360, 200]; // of the drawing, in its units
const [LEFT, RIGHT, BOTTOM, TOP] = [34, 18, 24, 10]; // around the lines

export const BASE_MODEL =
  "This is a base model: it does not answer, it continues the text that you begin. " +
  "What it writes sounds like what it read, and need not be true.";

const whole = (value) => (Number.isFinite(value) ? value.toLocaleString("en") : "unknown");
const measured = (value) => (Number.isFinite(value) ? value.toFixed(3) : "not measured");

/** Show what there is to know of the model: in the dialog, and in short where a chat begins. */
export function showCard(card) {
  byId("card-title").textContent = card.name;
  byId("card-body").replaceChildren(...cardOf(card));
  byId("figures").textContent =
    `${card.name}: ${whole(card.parameters)} parameters, ${whole(card.tokens_read)} tokens read, ` +
    `val loss ${measured(card.val_loss)}.`;
  byId("undertrained").textContent = card.warning ?? "";
  byId("undertrained").hidden = !card.warning;
  byId("about").textContent =
    `${card.name} is a base model: it continues text, and makes things up.`;
}

function cardOf(card) {
  const rows = [
    ["Parameters", whole(card.parameters)],
    ["Layers", whole(card.n_layer)],
    ["Heads", whole(card.n_head)],
    ["Channels", whole(card.n_embd)],
    ["Context", `${whole(card.block_size)} tokens`],
    ["Vocabulary", `${whole(card.vocab_size)} tokens`],
    ["Step", whole(card.step)],
    ["Tokens read", whole(card.tokens_read)],
    ["Val loss", measured(card.val_loss)],
    ["Bits per byte", measured(card.val_bpb)],
  ];
  const list = make("dl", {});
  for (const [term, value] of rows) list.append(make("dt", {}, term), make("dd", {}, value));
  const warning = card.warning ? [make("p", { className: "warning" }, card.warning)] : [];
  const heading = make("h3", {}, "Loss by training step");
  return [make("p", {}, BASE_MODEL), ...warning, list, heading, ...curveOf(card)];
}

function curveOf({ curve }) {
  const points = (list) => (list ?? []).filter((point) => point.every(Number.isFinite));
  const [train, val] = [points(curve?.train), points(curve?.val)];
  const all = [...train, ...val];
  if (all.length === 0) return [make("p", {}, "This run logged no losses.")];
  const svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const words = `${inWords("Train", train)} ${inWords("Val", val)}`;
  svg.setAttribute("aria-label", `Loss by training step. ${words}`.trim());
  const x = scale(all.map(([step]) => step), LEFT, WIDTH - RIGHT, { leastStep: 1 });
  const y = scale(all.map(([, loss]) => loss), HEIGHT - BOTTOM, TOP);
  svg.append(...gridOf(x, y), lineOf("train", train, x, y), lineOf("val", val, x, y));
  const dot = (name) => ([step, loss]) =>
    drawing("circle", { cx: x(step), cy: y(loss), r: 2.5, class: name });
  svg.append(...val.map(dot("val")), ...(train.length === 1 ? train.map(dot("train")) : []));
  const key = (name, meaning) => make("li", { className: name }, meaning);
  const legend = [key("train", "train loss, of a step"), key("val", "val loss")];
  return [svg, make("ul", { className: "legend" }, ...legend)];
}

function inWords(name, points) {
  if (points.length === 0) return "";
  return `${name} loss from ${points[0][1].toFixed(2)} to ${points.at(-1)[1].toFixed(2)}.`;
}

/** Return a function from a value to its place, with the ticks that fit: multiples of 1, 2 or 5. */
export function scale(values, from, to, { leastStep = 0 } = {}) {
  const [low, high] = [Math.min(...values), Math.max(...values)]; // a thousand at most
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const step = Math.max(leastStep, [1, 2, 5, 10].map((n) => n * power).find((n) => span / n <= 5));
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  const place = (value) => from + ((value / step - first) / (last - first)) * (to - from);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const numbers = Array.from({ length: last - first + 1 }, (_, i) => first + i);
  place.ticks = numbers.map((n) => ({ at: place(n * step), word: wordOf(n * step, digits) }));
  return place;
}

const wordOf = (value, digits) =>
  value >= 10_000
    ? Intl.NumberFormat("en", { notation: "compact" }).format(value)
    : value.toFixed(digits);

function gridOf(x, y) {
  const across = y.ticks.flatMap(({ at, word }) => [
    drawing("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at, class: "grid" }),
    drawing("text", { x: LEFT - 5, y: at + 3.5, "text-anchor": "end" }, word),
  ]);
  const along = x.ticks.map(({ at, word }) =>
    drawing("text", { x: at, y: HEIGHT - 8, "text-anchor": "middle" }, word),
  );
  return [...across, ...along];
}

function lineOf(name, points, x, y) {
  const path = points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`);
  return drawing("polyline", { points: path.join(" "), class: name });
}

function drawing(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
