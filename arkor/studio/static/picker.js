// The model picker: a run or a base model from a dialog, and a checkpoint of the run. The list of an active run follows its
// checkpoints, and selects the latest until the user chooses one. The choice is stored in the element's data attributes.

import { Checkpoints } from "./checkpoints.js";
import { LONG, named } from "./dom.js";
import { follow } from "./stream.js";

export function mount(root) {
  new Picker(root);
}

class Picker {
  constructor(root) {
    this.root = root;
    this.steps = root.querySelector("[data-steps]");
    this.dialog = document.getElementById("choose");
    root.querySelector("[data-open]").addEventListener("click", () => this.open());
    this.steps.addEventListener("change", () => this.chooseStep(this.steps.value));
    root.addEventListener("begin", () => this.begin(true)); // the data attributes were changed
    root.addEventListener("hold", () => this.chooseStep(root.dataset.step)); // keep the selected step
    this.begin(Boolean(root.dataset.step));
  }

  open() {
    const search = this.dialog.querySelector("input");
    search.value = "";
    this.dialog.onclick = (event) => {
      const chosen = event.target.closest("[data-choose]");
      if (event.target === this.dialog || event.target.closest("[data-close]")) this.dialog.close();
      if (!chosen) return;
      this.dialog.close();
      const { run = "", name, model, status = "" } = chosen.dataset;
      Object.assign(this.root.dataset, { run, name, model, status, step: run ? "" : "base" });
      this.begin(false);
    };
    this.dialog.showModal();
    search.focus();
    htmx.trigger(search, "look");
  }

  /** Start with a run or model, and load its checkpoints. `held`: the user has chosen the step. */
  begin(held) {
    const { run, name, status } = this.root.dataset;
    this.leave?.();
    const checkpoints = new Checkpoints(run, () => this.checkpoints === checkpoints && this.show());
    Object.assign(this, { held, checkpoints, final: status === "completed" });
    this.tellName(name);
    this.steps.hidden = !run;
    this.show();
    if (run) this.leave = follow(`/streams/runs/${encodeURIComponent(run)}`, { onEvents: (events) => this.hear(events) });
  }

  tellName(name) {
    const button = this.root.querySelector("[data-open]");
    const words = name || "Choose a model";
    button.querySelector("[data-picked-name]").replaceChildren(...named(words));
    button.setAttribute("aria-label", `${button.dataset.label}: ${words}`);
    button.title = words;
    this.root.classList.toggle("long", words.length > LONG);
  }

  hear(events) {
    if (!this.root.isConnected) return this.leave();
    for (const event of events) {
      this.checkpoints.take(event);
      const final = event.artifacts?.some(({ kind }) => kind === "final");
      if (event.type === "training.completed" || (event.type === "training.failed" && final)) this.final = true;
    }
    this.show();
  }

  show() {
    const known = this.checkpoints.steps.map((step) => [String(step), `Step ${step}`]);
    const { run, step } = this.root.dataset;
    const options = [...(this.final ? [["", "Final"]] : []), ...known, ["base", "Untrained"]];
    const isThere = options.some(([value]) => value === step);
    if (run && !isThere && this.held) options.unshift([step, step ? `Step ${step}` : "Final"]);
    if (String(options) !== this.offered) this.steps.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
    this.offered = String(options);
    this.settle();
  }

  /** Select the user's step, or by default the final adapter or the latest checkpoint. */
  settle() {
    const { run, step } = this.root.dataset;
    const [latest] = this.checkpoints.steps;
    const best = this.final ? "" : latest === undefined ? "base" : String(latest);
    const next = run ? (this.held ? step : best) : "base";
    this.steps.value = next;
    Object.assign(this.root.dataset, { step: next, held: this.held ? "1" : "" });
    this.root.querySelector('[name="run"]').value = run;
    this.root.querySelector('[name="model"]').value = this.root.dataset.model;
    this.root.dispatchEvent(new CustomEvent("picked", { bubbles: true }));
  }

  chooseStep(step) {
    this.held = true;
    this.root.dataset.step = step;
    this.settle();
  }
}
