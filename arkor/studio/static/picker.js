// Which weights answer: a run or a base model, chosen in a dialog, and of a run one of its checkpoints. A run that goes on
// shows each new checkpoint; until somebody chooses, its latest is chosen. What is chosen stands in the element's data.

import { follow } from "./stream.js";

const OVER = new Set(["completed", "failed", "cancelled"]);

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
    root.addEventListener("begin", () => this.begin(true)); // somebody has put another choice into the data
    root.addEventListener("hold", () => this.chooseStep(root.dataset.step)); // from here on it does not change by itself
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

  /** With another run or model: its checkpoints are found out. `held`: the step is somebody's choice. */
  begin(held) {
    const { run, name, status } = this.root.dataset;
    this.leave?.();
    Object.assign(this, { held, checkpoints: new Set(), final: status === "completed", over: OVER.has(status), heard: false });
    this.root.querySelector("[data-picked-name]").textContent = name || "Choose a model";
    this.steps.hidden = !run;
    this.show();
    if (run) this.leave = follow(`/streams/runs/${encodeURIComponent(run)}`, { onEvents: (events) => this.hear(events) });
  }

  hear(events) {
    if (!this.root.isConnected) return this.leave();
    this.heard = true;
    const before = this.checkpoints.size + this.final + this.over;
    for (const { type, step, artifacts } of events) {
      if (type === "checkpoint.saved") this.checkpoints.add(step);
      if (type === "training.completed" || type === "training.failed") {
        this.over = true;
        this.final = type === "training.completed" || Boolean(artifacts?.some(({ kind }) => kind === "final"));
        const kept = artifacts?.filter(({ kind }) => kind === "checkpoint").map((artifact) => artifact.step);
        if (kept?.length) this.checkpoints = new Set(kept);
      }
    }
    if (before !== this.checkpoints.size + this.final + this.over || this.steps.length === 0) this.show();
    else this.settle();
  }

  show() {
    const known = [...this.checkpoints].sort((one, other) => other - one).map((step) => [String(step), `Step ${step}`]);
    const { run, step } = this.root.dataset;
    const options = [...(this.final ? [["", "Final"]] : []), ...known, ["base", "Untrained"]];
    const isThere = options.some(([value]) => value === step);
    if (run && !isThere && this.held) options.unshift([step, step ? `Step ${step}` : "Final"]);
    this.steps.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
    this.settle();
  }

  /** What is chosen is one of those that there are: the best of them until somebody chooses. */
  settle() {
    const { run, step } = this.root.dataset;
    const best = this.final ? "" : this.checkpoints.size ? String(Math.max(...this.checkpoints)) : "base";
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
