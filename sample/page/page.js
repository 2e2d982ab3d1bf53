// The page: a chat with the model that this server serves.
//
// page.js wires it up. api.js talks to the server, answers.js has the answers written, store.js
// keeps the chats, transcript.js shows one, tokens.js its probabilities, sources.js where it
// was read, sidebar.js lists them; settings.js and card.js are dialogs.

import { ask, runningOr, runningChats, runningIn, stopIn } from "./answers.js";
import { fetchCard, keepKey } from "./api.js";
import { showCard } from "./card.js";
import { byId, make, showToast } from "./dom.js";
import { Settings } from "./settings.js";
import { isDrawerOpen, nameOf, setDrawer, showChats } from "./sidebar.js";
import { closePanel } from "./sources.js";
import { forgetChat, isOf, keepChat, keepsNothing, newChat } from "./store.js";
import { read, readChats, write } from "./store.js";
import { Transcript, isSendKey } from "./transcript.js";

const TITLE_LENGTH = 60; // characters

let card = null;
let chats = [];
let current = newChat();
let hasWarnedFull = false;
const waitingForKey = []; // what to do once there is a key

const prompt = byId("prompt");
const transcript = new Transcript({ edit: editFrom, retry });
const settings = new Settings(warnFull);

// -- one answer

function send() {
  const text = prompt.value;
  if (!text.trim() || runningIn(current)) return;
  prompt.value = "";
  fitPrompt();
  sendText(text);
}

function sendText(text) {
  if (current.messages.length === 0) {
    current.title ||= titleOf(text);
    chats.unshift(current);
  }
  const message = { role: "user", text };
  current.messages.push(message);
  transcript.add(message, false);
  answerIn(current);
}

// By characters, not UTF-16 units: no half of one at the end.
function titleOf(text) {
  const characters = [...text.trim().replace(/\s+/g, " ")];
  const more = characters.length > TITLE_LENGTH ? "..." : "";
  return characters.slice(0, TITLE_LENGTH).join("") + more;
}

function answerIn(chat) {
  const begin = (message) => {
    touch(chat);
    if (chat !== current) return;
    transcript.add(message, true);
    transcript.toEnd();
    showState();
  };
  const end = (message, error) => {
    touch(chat);
    transcript.end(message);
    showState();
    if (error?.needsKey) askForKey(() => chat === current && retry());
  };
  const update = (message) => transcript.update(message);
  // they take the server time, and the browser room
  const logprobs = transcript.withTokens ? { logprobs: true, top_logprobs: 5 } : {};
  const request = { model: card?.name, ...settings.request(), ...logprobs };
  ask(chat, request, settings.system, { begin, update, save: () => keep(chat), end });
}

function retry() {
  if (runningIn(current) || current.messages.at(-1)?.role !== "assistant") return;
  current.messages.pop();
  showCurrent();
  answerIn(current);
  prompt.focus();
}

function editFrom(message, text) {
  current.messages.length = current.messages.indexOf(message);
  if (current.messages.length === 0) {
    chats = chats.filter((chat) => chat !== current); // sendText puts it back
    if (current.title === titleOf(message.text)) current.title = ""; // nobody chose it
  }
  showCurrent();
  sendText(text);
  prompt.focus();
}

// -- chats

function touch(chat) {
  chat.changed = Date.now();
  keep(chat);
  chats.sort((a, b) => b.changed - a.changed);
  listChats();
}

function keep(chat) {
  if (!chats.includes(chat)) return; // deleted meanwhile
  if (keepChat(chat)) hasWarnedFull = false;
  else warnFull();
}

function warnFull() {
  if (hasWarnedFull) return;
  hasWarnedFull = true;
  showToast("The browser has no room to keep this: it lasts until the page is closed. Delete some chats.");
}

function choose(chat) {
  current = chat;
  setDrawer(false);
  showCurrent();
  listChats();
  prompt.focus();
}

function rename(chat, title) {
  chat.title = title;
  keep(chat);
  showState();
}

function remove(chat) {
  stopIn(chat);
  chats = chats.filter((other) => other !== chat);
  forgetChat(chat);
  if (chat === current) {
    current = newChat();
    showCurrent();
  }
  listChats();
  byId("new-chat").focus();
  showToast(`Deleted: ${nameOf(chat)}`, { word: "Undo", run: () => restore(chat) });
}

function restore(chat) {
  chats.push(chat);
  keep(chat);
  chats.sort((a, b) => b.changed - a.changed);
  choose(chat);
}

function listChats() {
  const field = document.activeElement;
  if (field?.closest("#chats") && field.tagName === "INPUT") return; // a name is being typed
  showChats(chats, current, { choose, rename, remove });
}

// What another tab of this page kept is shown here too; what runs or is edited here goes on.
function readAgain(event) {
  const isBusy = runningIn(current) || transcript.isEditing;
  const stays = isBusy || !isOf(current, event);
  chats = readChats().chats.map(runningOr).map((chat) => {
    return stays && chat.id === current.id ? current : chat;
  });
  if (!stays && current.messages.length > 0) {
    current = chats.find((chat) => chat.id === current.id) ?? newChat();
    showCurrent();
  }
  listChats();
}

// -- what is shown

function showCurrent() {
  transcript.show(current.messages, runningIn(current));
  showState();
}

function showState() {
  const isRunning = Boolean(runningIn(current));
  const sendButton = byId("send");
  sendButton.classList.toggle("running", isRunning);
  sendButton.ariaLabel = isRunning ? "Stop" : "Send";
  byId("title").textContent = nameOf(current);
  document.title = current.title ? `${current.title} - Quern` : "Quern";
  byId("welcome").hidden = current.messages.length > 0;
  byId("legend").hidden = !transcript.withTokens || current.messages.length === 0;
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

async function loadCard() {
  try {
    card = await fetchCard();
  } catch (error) {
    byId("card-body").replaceChildren(make("p", { className: "warning" }, error.message));
    if (error.needsKey) askForKey(loadCard);
    else showToast(error.message);
    return;
  }
  showCard(card);
  settings.useDefaults(card);
}

function askForKey(again) {
  waitingForKey.push(again);
  if (!byId("key").open) byId("key").showModal();
}

function takeKey(event) {
  event.preventDefault();
  keepKey(byId("key-value").value.trim());
  byId("key-form").reset();
  byId("key").close();
  for (const again of waitingForKey.splice(0)) again();
}

function setTokens(isOn) {
  transcript.withTokens = isOn;
  byId("show-tokens").setAttribute("aria-pressed", String(isOn));
  const { scrollTop } = byId("scroller");
  showCurrent();
  byId("scroller").scrollTop = scrollTop;
}

// -- keys and buttons

function wire() {
  byId("prompt-form").onsubmit = (event) => {
    event.preventDefault();
    if (runningIn(current)) stopIn(current);
    else send();
  };
  byId("key-form").onsubmit = takeKey;
  prompt.oninput = fitPrompt;
  prompt.onkeydown = (event) => {
    if (!isSendKey(event)) return;
    event.preventDefault();
    send();
  };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (isDrawerOpen()) setDrawer(false);
    else if (!closePanel()) stopIn(current);
  });
  byId("new-chat").onclick = () => choose(newChat());
  byId("open-sidebar").onclick = () => setDrawer(true);
  byId("close-sidebar").onclick = () => setDrawer(false);
  document.body.onclick = ({ target }) => {
    if (isDrawerOpen() && target === document.body) setDrawer(false); // beside the drawer
  };
  byId("show-tokens").onclick = () => {
    setTokens(!transcript.withTokens);
    write("tokens", transcript.withTokens);
  };
  byId("open-card").onclick = () => (card || loadCard(), byId("card").showModal());
  byId("close-card").onclick = () => byId("card").close();
  byId("open-settings").onclick = () => (settings.show(), byId("settings").showModal());
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
  byId("theme").onchange = ({ target }) => {
    document.documentElement.dataset.theme = target.value;
    write("theme", target.value);
  };
  window.addEventListener("storage", readAgain);
  window.addEventListener("pagehide", () => runningChats().forEach(keep));
}

function start() {
  const { chats: kept, nDamaged } = readChats();
  chats = kept;
  const theme = read("theme");
  const radio = document.querySelector(`[name=theme][value=${CSS.escape(String(theme))}]`);
  if (radio) radio.checked = true;
  wire();
  listChats();
  setTokens(read("tokens") === true);
  settings.show();
  loadCard();
  prompt.focus();
  if (keepsNothing) showToast("This browser lets the page keep nothing: chats last until it is closed.");
  else if (nDamaged > 0) showToast(`${nDamaged} of the kept chats cannot be read: left out here.`);
}

start();
