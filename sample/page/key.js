// The dialog that asks for the server's API key.

import { keepKey } from "./api.js";
import { byId } from "./dom.js";

let waiting = new Set(); // what to do once there is a key

/** Ask for the key, then call again; several may wait for the same key. */
export function askForKey(again) {
  waiting.add(again);
  byId("key-form").onsubmit = (event) => {
    event.preventDefault();
    keepKey(byId("key-value").value.trim());
    byId("key-value").value = "";
    byId("key").close();
    const calls = waiting;
    waiting = new Set();
    for (const call of calls) call();
  };
  if (!byId("key").open) byId("key").showModal();
}
