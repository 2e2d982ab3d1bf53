// What the browser keeps: chats, settings, the theme.
//
// A chat is an entry of its own, so that a damaged one takes no other along:
// {id, title, changed, messages: [{role, text, tokens, notices, sources, end, error}]}. changed is
// in milliseconds; tokens are [bytes, logprob, [[bytes, logprob], ...]]; sources are the server's;
// notices and error are sentences; end says how an answer ended: "stop", "length", "stopped" by the person, "error", or
// "running".

import { sourcesOf } from "./sources.js";

const CHAT = "quern.chat."; // and its id
const ENDS = ["stop", "length", "stopped", "error", "running"];

function open() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

const storage = open();

/** Whether what is kept is gone with the page. */
export const keepsNothing = storage === null;

/** Return an entry's value, or null where there is none or it is damaged. */
export function read(name) {
  try {
    return JSON.parse(storage.getItem(`quern.${name}`));
  } catch {
    return null;
  }
}

/** Keep a value; return whether there was room. */
export function write(name, value) {
  try {
    storage?.setItem(`quern.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false; // the browser's quota
  }
}

/** Return {chats, nDamaged}: every chat that can be read, the last changed first. */
export function readChats() {
  const keys = Object.keys(storage ?? {}).filter((key) => key.startsWith(CHAT));
  const chats = keys.map((key) => chatOf(key, storage.getItem(key))).filter(Boolean);
  chats.sort((a, b) => b.changed - a.changed);
  return { chats, nDamaged: keys.length - chats.length };
}

/** Return a new chat, not kept yet. */
export function newChat() {
  // not crypto.randomUUID: it is missing where the page came over plain HTTP from another machine
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
  return { id, title: "", changed: Date.now(), messages: [] };
}

/**
 * Keep a chat; return whether there was room.
 *
 * Probabilities and sources take the most room, so they go first: the other chats', then its own.
 */
export function keepChat(chat) {
  const put = (each) => write(`chat.${each.id}`, each);
  if (put(chat)) return true;
  const others = readChats().chats.filter(({ id }) => id !== chat.id);
  others.map(withoutMost).forEach(put);
  return put(chat) || put(withoutMost(chat));
}

/** Return whether a storage event may have changed a chat; one without a key changed all. */
export const isOf = (chat, { key }) => key === null || key === CHAT + chat.id;

/** Forget a chat. */
export function forgetChat(chat) {
  storage?.removeItem(CHAT + chat.id);
}

function withoutMost(chat) {
  const cut = (message) => ({ ...message, tokens: [], sources: null });
  return { ...chat, messages: chat.messages.map(cut) };
}

function chatOf(key, text) {
  try {
    const { title, changed, messages } = JSON.parse(text);
    if (typeof title !== "string" || !Number.isFinite(changed)) return null;
    return { id: key.slice(CHAT.length), title, changed, messages: messages.map(messageOf) };
  } catch {
    return null;
  }
}

function messageOf({ role, text, tokens, notices, sources, end, error }) {
  if (!["user", "assistant"].includes(role) || typeof text !== "string") throw new TypeError();
  if (role === "user") return { role, text };
  const isText = (value) => typeof value === "string";
  return {
    role,
    text,
    tokens: Array.isArray(tokens) && tokens.every(isToken) ? tokens : [],
    notices: Array.isArray(notices) ? notices.filter(isText) : [],
    sources: sourcesOf(sources),
    end: ENDS.includes(end) ? end : "stop",
    error: isText(error) ? error : "",
  };
}

function isToken(token) {
  const isPair = (pair) =>
    Array.isArray(pair) && Array.isArray(pair[0]) && Number.isFinite(pair[1]);
  return isPair(token) && Array.isArray(token[2]) && token[2].every(isPair);
}
