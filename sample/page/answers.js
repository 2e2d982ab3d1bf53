// The answers that are being written: one a chat, also of chats that are not shown.

import { ServerError, answer } from "./api.js";
import { sourcesOf } from "./sources.js";
import { tokenOf } from "./tokens.js";

const KEEP_MS = 2_000; // an answer is kept this often while it comes

const running = new Map(); // a chat's id -> {chat, message, controller}
let isLeaving = false; // the page is being closed, which breaks its connections

window.addEventListener("pageshow", () => (isLeaving = false));
window.addEventListener("pagehide", () => (isLeaving = true));

/** Return the answer that is being written in a chat, or undefined. */
export const runningIn = (chat) => running.get(chat.id)?.message;

/** Return the chats in which an answer is being written. */
export const runningChats = () => [...running.values()].map(({ chat }) => chat);

/** Return the chat of that id that is being written to, or else the one that was given. */
export const runningOr = (chat) => running.get(chat.id)?.chat ?? chat;

/** Stop a chat's answer, if one is being written. */
export const stopIn = (chat) => running.get(chat.id)?.controller.abort();

/**
 * Ask for an answer to a chat, and add it.
 *
 * on: {begin(message), update(message), save(), end(message, error)}; error is null or what
 * went wrong. settings: what the request says besides the messages; system: a text before them.
 */
export async function ask(chat, settings, system, on) {
  const request = { ...settings, messages: messagesOf(chat, system) };
  const message = { role: "assistant", text: "", tokens: [], notices: [], error: "" };
  message.end = "running";
  const controller = new AbortController();
  chat.messages.push(message);
  running.set(chat.id, { chat, message, controller });
  on.begin(message);
  const keeping = setInterval(on.save, KEEP_MS);
  let failure = null;
  try {
    for await (const piece of answer(request, controller.signal)) {
      const { text, tokens, notices, reason, sources } = piece;
      message.text += text;
      message.notices.push(...notices);
      message.tokens.push(...tokens.map(tokenOf));
      message.sources ??= sourcesOf(sources);
      if (reason) message.end = reason === "length" ? "length" : "stop";
      on.update(message);
    }
    if (message.end === "running") message.end = "stop";
  } catch (error) {
    failure = error;
    fail(message, error);
  }
  clearInterval(keeping);
  running.delete(chat.id);
  on.end(message, failure);
}

function messagesOf(chat, system) {
  const said = chat.messages.filter(({ text }) => text !== ""); // an answer may have failed at once
  const messages = said.map(({ role, text }) => ({ role, content: text }));
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

function fail(message, error) {
  if (error.name === "AbortError") message.end = "stopped";
  else if (!isLeaving) { // or it stays "running", which says so when the chat is opened again
    message.end = "error";
    message.error = error instanceof ServerError ? error.message : `The page failed: ${error}`;
  }
}
