// The available checkpoints of a run: saved ones from its events, without those that the backend has deleted.

import { headers } from "./session.js";

const SETTLED_MS = 1500; // the backend deletes old checkpoints shortly after a save
const ENDS = new Set(["training.completed", "training.failed", "training.cancelled"]);

export class Checkpoints {
  /** `changed()` is called when the backend has reported which checkpoints it keeps. */
  constructor(run, changed) {
    Object.assign(this, { run, changed, saved: new Map(), kept: null, over: false, wait: 0 });
  }

  /** Process an event; `value` is stored for the checkpoint that it announces. */
  take({ type, step, artifacts }, value = step) {
    if (type === "checkpoint.saved") {
      this.saved.set(step, value);
      this.askSoon();
    } else if (ENDS.has(type)) {
      this.over = true;
      const listed = artifacts?.filter(({ kind }) => kind === "checkpoint").map((artifact) => artifact.step);
      if (listed?.length) this.kept = new Set(listed); // an empty list is not reliable
      if (this.saved.size) this.askSoon();
    }
  }

  /** Their steps, latest first; includes checkpoints newer than the backend's report. */
  get steps() {
    const youngest = this.over ? Infinity : Math.max(...(this.kept ?? []));
    const there = (step) => !this.kept || this.kept.has(step) || step > youngest;
    return [...this.saved.keys()].filter(there).sort((one, other) => other - one);
  }

  askSoon() {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.ask();
    }, this.wait);
    this.wait = SETTLED_MS; // the first request is not delayed: recorded events are old
  }

  async ask() {
    try {
      const answer = await fetch(`/parts/runs/${encodeURIComponent(this.run)}/checkpoints`, { headers: headers() });
      const { kept } = answer.ok ? await answer.json() : {};
      if (!kept) return;
      this.kept = new Set(kept);
      this.changed();
    } catch { /* Studio cannot be reached: keep the known state */ }
  }
}
