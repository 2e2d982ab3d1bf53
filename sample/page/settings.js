// The settings: each has the server's default until the person sets it; only what was set is kept.

import { byId } from "./dom.js";
import { read, write } from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

/** The settings dialog. */
export class Settings {
  constructor(onUnkept) {
    this.defaults = {};
    this.chosen = chosenOf(read("settings"));
    this.onUnkept = onUnkept;
    this.form = byId("settings-form");
    this.form.oninput = (event) => this.take(event.target);
    this.form.onsubmit = (event) => (event.preventDefault(), this.close());
    byId("reset").onclick = () => this.choose({});
  }

  /** Show what is in effect; defaults are the card's. */
  useDefaults({ defaults }) {
    this.defaults = defaults ?? {};
    this.show();
  }

  /** Return the part of a request that the settings decide. */
  request() {
    const request = {};
    for (const name of NUMBERS) {
      const value = this.chosen[name] ?? this.defaults[name];
      if (value !== undefined && value !== null) request[name] = value;
    }
    return request;
  }

  /** Return the text that comes before the conversation. */
  get system() {
    return this.chosen.system ?? "";
  }

  show() {
    for (const name of NUMBERS) {
      const value = this.chosen[name] ?? this.defaults[name] ?? "";
      this.form.elements[name].value = value;
      this.explain(this.form.elements[name]);
    }
    this.form.elements.system.value = this.system;
  }

  take(field) {
    const { name, value } = field;
    if (name !== "system") {
      this.explain(field);
      if (!field.validity.valid) return; // explained; the last good value stays
    }
    const chosen = { ...this.chosen, [name]: name === "system" ? value : Number(value) };
    if (value === "") delete chosen[name];
    this.keep(chosen);
  }

  explain(field) {
    const output = byId(`${field.name}-value`);
    if (output) output.value = field.value;
    const note = byId(`${field.name}-wrong`);
    if (!note) return;
    const { min, max } = field;
    const range = max === "" ? `${min} or more` : `from ${min} to ${max}`;
    note.textContent = field.validity.valid ? "" : `A whole number ${range}: this one is not used.`;
    field.setAttribute("aria-invalid", String(!field.validity.valid));
  }

  choose(chosen) {
    this.keep(chosen);
    this.show();
  }

  keep(chosen) {
    this.chosen = chosen;
    if (!write("settings", chosen)) this.onUnkept();
  }

  close() {
    byId("settings").close();
  }
}

function chosenOf(kept) {
  const chosen = {};
  for (const name of NUMBERS) if (Number.isFinite(kept?.[name])) chosen[name] = kept[name];
  if (typeof kept?.system === "string") chosen.system = kept.system;
  return chosen;
}
