// The list of chats: choose, rename, delete.

import { byId, make } from "./dom.js";

const isNarrow = matchMedia("(max-width: 800px)"); // as in page.css

/** Return a chat's name. */
export const nameOf = (chat) => chat.title || "New chat";

/** Show the chats; actions: {choose(chat), rename(chat, title), remove(chat)}. */
export function showChats(chats, current, actions) {
  const items = chats.map((chat) => itemOf(chat, chat === current, actions));
  byId("chats").replaceChildren(...items);
}

function itemOf(chat, isCurrent, actions) {
  const item = byId("chat-item").content.firstElementChild.cloneNode(true);
  const [choose, rename, remove] = item.querySelectorAll("button");
  choose.firstElementChild.textContent = nameOf(chat);
  choose.title = nameOf(chat);
  if (isCurrent) choose.setAttribute("aria-current", "true");
  rename.ariaLabel = `Rename ${nameOf(chat)}`;
  remove.ariaLabel = `Delete ${nameOf(chat)}`;
  choose.onclick = () => actions.choose(chat);
  remove.onclick = () => actions.remove(chat);
  rename.onclick = () => renameIn(item, chat, actions);
  return item;
}

function renameIn(item, chat, actions) {
  const field = make("input", { value: nameOf(chat), ariaLabel: "Name of the chat", dir: "auto" });
  const isCurrent = item.querySelector("[aria-current]") !== null;
  // Only this item is drawn anew: a press on another, which ends the naming, must find it there.
  const finish = (title, { byKey }) => {
    field.onblur = null; // taken away, it is left too
    actions.rename(chat, title.trim() || chat.title);
    const renamed = itemOf(chat, isCurrent, actions);
    item.replaceWith(renamed);
    if (byKey) renamed.querySelector(".rename").focus();
  };
  field.maxLength = 100;
  field.onblur = () => finish(field.value, { byKey: false });
  field.onkeydown = (event) => {
    if (event.key === "Enter" && !event.isComposing) finish(field.value, { byKey: true });
    if (event.key === "Escape") (event.stopPropagation(), finish(chat.title, { byKey: true }));
  };
  item.replaceChildren(field);
  field.select();
}

/** Open or close the drawer that the list is on a narrow screen. */
export function setDrawer(isOpen) {
  const wasOpen = isDrawerOpen();
  document.body.classList.toggle("drawer", isOpen);
  byId("open-sidebar").setAttribute("aria-expanded", String(isOpen));
  byId("main").inert = isOpen && isNarrow.matches;
  if (isOpen) byId("new-chat").focus();
  else if (wasOpen && isNarrow.matches) byId("open-sidebar").focus();
}

/** Return whether the drawer is open. */
export const isDrawerOpen = () => document.body.classList.contains("drawer");

isNarrow.addEventListener("change", () => setDrawer(false));
