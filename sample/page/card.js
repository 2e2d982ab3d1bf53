// The model card: what the model is.

import { byId, make } from "./dom.js";

const TRUTH = "What it writes sounds like what it read, and need not be true.";
const BASE = {
  begin: "Begin a text",
  sentence: `This is a base model: it does not answer, it continues the text that you begin. ${TRUTH}`,
  about: "is a base model: it continues text, and makes things up.",
};
const CHAT = {
  begin: "Ask something",
  sentence: `This model was trained on conversations, and answers. ${TRUTH}`,
  about: "answers from what it read, and makes things up.",
};

const whole = (value) => (Number.isFinite(value) ? value.toLocaleString("en") : "unknown");
const measured = (value) => (Number.isFinite(value) ? value.toFixed(3) : "not measured");

/** Show what there is to know of the model: in the dialog, and in short where a chat begins. */
export function showCard(card) {
  const rows = {
    Parameters: whole(card.parameters),
    Layers: whole(card.n_layer),
    Heads: whole(card.n_head),
    Channels: whole(card.n_embd),
    Context: `${whole(card.block_size)} tokens`,
    Vocabulary: `${whole(card.vocab_size)} tokens`,
    Step: whole(card.step),
    "Tokens read": whole(card.tokens_read),
    "Val loss": measured(card.val_loss),
    "Bits per byte": measured(card.val_bpb),
  };
  const cells = Object.entries(rows).flatMap(([term, value]) => [
    make("dt", {}, term),
    make("dd", {}, value),
  ]);
  const warning = card.warning ? [make("p", { className: "warning" }, card.warning)] : [];
  byId("card-title").textContent = card.name;
  const words = card.template === "chat" ? CHAT : BASE;
  byId("card-body").replaceChildren(make("p", {}, words.sentence), ...warning, make("dl", {}, ...cells));
  byId("what-it-is").textContent = words.sentence;
  byId("what-to-do").textContent = byId("prompt").placeholder = words.begin;
  byId("figures").textContent =
    `${card.name}: ${rows.Parameters} parameters, ${rows["Tokens read"]} tokens read, ` +
    `val loss ${rows["Val loss"]}.`;
  byId("undertrained").textContent = card.warning ?? "";
  byId("undertrained").hidden = !card.warning;
  byId("about").textContent = `${card.name} ${words.about}`;
}
