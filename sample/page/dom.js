// Elements. Text only ever becomes a text node: nothing here, or anywhere, reads HTML.

/** Return an element with properties (or attributes, where there is no such property). */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Return the element with an id; page.html has it. */
export const byId = (id) => document.getElementById(id);

/** Return a button with a word on it; name says more to those who cannot see where it stands. */
export function button(word, name, onclick) {
  return make("button", { type: "button", className: "quiet", ariaLabel: name, onclick }, word);
}

/** Put a fixed box below an element, or above where there is no room, and within the window. */
export function placeBeside(box, element) {
  const lines = element.getClientRects();
  const [first, last] = lines.length ? [lines[0], lines[lines.length - 1]] : [];
  if (!first) return;
  const below = last.bottom + 4;
  const hasRoom = below + box.offsetHeight + 4 < innerHeight;
  const fit = (at, size, room) => `${Math.max(8, Math.min(at, room - size - 8))}px`;
  box.style.left = fit(first.left, box.offsetWidth, innerWidth);
  box.style.top = fit(hasRoom ? below : first.top - box.offsetHeight - 4, box.offsetHeight, innerHeight);
}

let hiding;

/** Say a sentence at the foot of the page for some seconds, aloud too; action: {word, run}. */
export function showToast(sentence, action = null) {
  clearTimeout(hiding);
  const toast = byId("toast");
  toast.replaceChildren(make("span", {}, sentence));
  if (action) {
    const run = () => (hideToast(), action.run());
    toast.append(make("button", { type: "button", className: "quiet", onclick: run }, action.word));
  }
  toast.classList.add("shown");
  hiding = setTimeout(hideToast, action || sentence.length > 40 ? 10_000 : 3_000);
}

function hideToast() {
  byId("toast").classList.remove("shown");
  byId("toast").replaceChildren();
}
