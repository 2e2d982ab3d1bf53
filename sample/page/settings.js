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
    this.form.oninput = (event) => this.change(event.target);
    this.form.onsubmit = (event) => (event.preventDefault(), byId("settings").close());
    byId("reset").onclick = () => (this.keep({}), this.show());
  }

  /** Show what is in effect; defaults are the card's. */
  useDefaults({ defaults }) {
    this.defaults = defaults ?? {};
    this.show();
  }

  /** Return the part of a request that the settings decide. */
  request() {
    const { system, ...numbers } = this.chosen; // the system text is a message
    return { ...this.defaults, ...numbers };
  }

  /** Return the text that comes before the conversation. */
  get system() {
    return this.chosen.system ?? "";
  }

  show() {
    const inEffect = this.request();
    for (const name of NUMBERS) {
      this.form.elements[name].value = inEffect[name] ?? "";
      this.explain(this.form.elements[name]);
    }
    this.form.elements.system.value = this.system;
  }

  change(field) {
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

  keep(chosen) {
    this.chosen = chosen;
    if (!write("settings", chosen)) this.onUnkept();
  }
}

function chosenOf(kept) {
  const chosen = {};
  for (const name of NUMBERS) if (Number.isFinite(kept?.[name])) chosen[name] = kept[name];
  if (typeof kept?.system === "string") chosen.system = kept.system;
  return chosen;
}
