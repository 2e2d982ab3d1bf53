// The settings: each has the server's default until the person sets it; only what was set is kept.

import { byId } from "./dom.js";
import { read, write } from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const WITH_SOURCES =
  "Underline what stands word for word in the training text; pointing at it shows where.";
const WITHOUT_INDEX =
  "The server has no index of its training text: python -m prepare index DATA makes one.";

/** The settings dialog. */
export class Settings {
  constructor(onUnkept) {
    this.defaults = {};
    this.hasSources = false;
    this.chosen = chosenOf(read("settings"));
    this.onUnkept = onUnkept;
    this.form = byId("settings-form");
    this.form.oninput = (event) => this.change(event.target);
    this.form.onsubmit = (event) => (event.preventDefault(), byId("settings").close());
    byId("reset").onclick = () => (this.keep({}), this.show());
  }

  /** Show what is in effect; defaults are the card's, sources: whether there is what finds them. */
  useDefaults({ defaults, sources }) {
    this.hasSources = sources === true;
    this.defaults = defaults ?? {};
    this.show();
  }

  /** Return the part of a request that the settings decide. */
  request() {
    const { system, sources, ...numbers } = this.chosen; // the system text is a message
    return { ...this.defaults, ...numbers, ...(this.withSources ? { sources: true } : {}) };
  }

  /** Return the text that comes before the conversation. */
  get system() {
    return this.chosen.system ?? "";
  }

  /** Return whether answers are to say where they stand in the training text. */
  get withSources() {
    return this.hasSources && this.chosen.sources !== false;
  }

  show() {
    const inEffect = this.request();
    for (const name of NUMBERS) {
      this.form.elements[name].value = inEffect[name] ?? "";
      this.explain(this.form.elements[name]);
    }
    this.form.elements.system.value = this.system;
    const { sources } = this.form.elements;
    sources.checked = this.withSources;
    sources.disabled = !this.hasSources;
    byId("sources-hint").textContent = this.hasSources ? WITH_SOURCES : WITHOUT_INDEX;
  }

  change(field) {
    const { name, value } = field;
    if (name === "sources") return this.keep({ ...this.chosen, sources: field.checked });
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
  if (typeof kept?.sources === "boolean") chosen.sources = kept.sources;
  if (typeof kept?.system === "string") chosen.system = kept.system;
  return chosen;
}
