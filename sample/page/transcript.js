// The conversation as it is shown. What anybody said only ever becomes text nodes.

import { byId, make, showToast } from "./dom.js";
import { closePanel, drawSources, placePanel, shareOf } from "./sources.js";
import { drawTokens, hideTip, moveBetweenTokens, placeTip } from "./tokens.js";

const NEAR_PX = 48; // this near the end counts as at the end
const WORDS = {
  length: "Ended at the limit of tokens, which Settings can raise.",
  stopped: "Stopped.",
  running: "The page was closed before this answer was whole.",
};

/** The messages of one chat. */
export class Transcript {
  /** actions: {edit(message, text), retry()}. */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("transcript");
    this.scroller = byId("scroller");
    this.withTokens = false;
    this.views = new Map(); // message -> {item, body, drawn}
    this.frame = 0;
    this.list.addEventListener("keydown", moveBetweenTokens);
    this.scroller.addEventListener("scroll", () => (placeTip(), placePanel(), this.noteEnd()));
    byId("to-end").onclick = () => (this.toEnd(), byId("prompt").focus());
    new ResizeObserver(() => this.noteEnd()).observe(this.scroller);
  }

  /** Whether a text is being edited. */
  get isEditing() {
    return this.list.querySelector(".editor") !== null;
  }

  /** Show a chat's messages; running is the one that is still being written, if any. */
  show(messages, running) {
    hideTip();
    closePanel();
    this.views.clear();
    this.list.replaceChildren();
    this.list.classList.remove("running");
    for (const message of messages) this.add(message, message === running);
    this.toEnd();
  }

  /** Add a message at the end. */
  add(message, isRunning) {
    const item = byId("message").content.firstElementChild.cloneNode(true);
    const body = item.querySelector(".body");
    item.classList.add(message.role);
    item.querySelector(".speaker").textContent = message.role === "user" ? "You:" : "The model:";
    const [copying, edit, retry] = item.querySelectorAll("button");
    copying.onclick = () => copy(message.text);
    edit.onclick = () => this.edit(message);
    retry.onclick = () => this.actions.retry();
    (message.role === "user" ? retry : edit).remove();
    this.list.append(item);
    this.views.set(message, { item, body, drawn: 0 });
    this.draw(message, { isWhole: !isRunning });
  }

  /** Show what has been added to a running message, with the browser's next picture. */
  update(message) {
    if (this.frame || !this.views.has(message)) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.views.has(message)) this.following(() => this.draw(message, { isWhole: false }));
    });
  }

  /** Show that a message has ended. */
  end(message) {
    if (!this.views.has(message)) return;
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.following(() => this.draw(message, { isWhole: true }));
  }

  draw(message, { isWhole }) {
    const view = this.views.get(message);
    view.body.setAttribute("aria-busy", String(!isWhole)); // read aloud when it is whole
    for (const element of [view.item, this.list]) element.classList.toggle("running", !isWhole);
    const isTinted = this.withTokens && message.role === "assistant" && message.tokens.length > 0;
    if (isTinted) {
      if (view.drawn === 0) view.body.replaceChildren();
      view.drawn = drawTokens(view.body, message.tokens, view.drawn, { isWhole });
    } else if (isWhole && message.sources?.spans.length) {
      drawSources(view.body, message.text, message.sources);
    } else if (view.body.firstChild instanceof Text) view.body.firstChild.data = message.text;
    else view.body.replaceChildren(message.text);
    if (isWhole) this.note(view.item, message);
  }

  note(item, message) {
    if (message.role === "user") return;
    const share = item.querySelector(".share");
    const [notices, note] = item.querySelectorAll(".note");
    share.textContent = message.sources && message.text ? shareOf(message.sources) : "";
    share.hidden = share.textContent === "";
    notices.textContent = message.notices.join(" ");
    notices.hidden = message.notices.length === 0;
    const nothing = message.text === "" && message.end === "stop" ? "The model ended at once." : "";
    note.textContent = message.error || WORDS[message.end] || nothing;
    note.hidden = note.textContent === "";
    note.classList.toggle("error", Boolean(message.error));
    if (message.error) note.setAttribute("role", "alert");
    item.querySelector(".copy").hidden = message.text === "";
  }

  edit(message) {
    const { item, body } = this.views.get(message);
    const form = byId("editor").content.firstElementChild.cloneNode(true);
    const field = form.querySelector("textarea");
    const back = () => {
      form.replaceWith(body);
      item.classList.remove("editing");
      item.querySelector(".edit").focus();
    };
    field.value = message.text;
    form.onsubmit = (event) => {
      event.preventDefault();
      if (field.value.trim() && !this.list.classList.contains("running"))
        this.actions.edit(message, field.value);
    };
    form.querySelector(".cancel").onclick = back;
    form.onkeydown = (event) => {
      if (event.key === "Escape") (event.stopPropagation(), back());
      if (!isSendKey(event) || event.target !== field) return;
      event.preventDefault();
      form.requestSubmit();
    };
    item.classList.add("editing");
    body.replaceWith(form);
    field.focus();
  }

  following(change) {
    const wasAtEnd = this.isAtEnd();
    change();
    if (wasAtEnd) this.toEnd();
    this.noteEnd();
  }

  isAtEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    return scrollTop + clientHeight >= scrollHeight - NEAR_PX;
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  noteEnd() {
    byId("to-end").hidden = this.isAtEnd();
  }
}

/** Return whether a key press sends: Enter, but not within the composition of a character. */
export function isSendKey(event) {
  const isComposing = event.isComposing || event.keyCode === 229; // 229: Safari's way to say it
  return event.key === "Enter" && !event.shiftKey && !isComposing;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    showToast("Copied.");
  } catch {
    showToast(copyByHand(text) ? "Copied." : "This browser does not let the page copy.");
  }
}

// The clipboard is closed to pages that came over plain HTTP from another machine.
function copyByHand(text) {
  const from = document.activeElement;
  const field = make("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  from?.focus();
  return isDone;
}
