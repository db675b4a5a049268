// The checkpoints of a run that can be asked: its events tell of each that is saved, its backend which of them it keeps.

import { headers } from "./session.js";

const SETTLED_MS = 1500; // a checkpoint is saved first; then those that it takes the place of are cleared away
const ENDS = new Set(["training.completed", "training.failed", "training.cancelled"]);

export class Checkpoints {
  /** `changed()` is called when the backend has said which it keeps. */
  constructor(run, changed) {
    Object.assign(this, { run, changed, saved: new Map(), kept: null, over: false, wait: 0 });
  }

  /** What an event says of them; `value` is what is to be known of one that it tells of. */
  take({ type, step, artifacts }, value = step) {
    if (type === "checkpoint.saved") {
      this.saved.set(step, value);
      this.askSoon();
    } else if (ENDS.has(type)) {
      this.over = true;
      const listed = artifacts?.filter(({ kind }) => kind === "checkpoint").map((artifact) => artifact.step);
      if (listed?.length) this.kept = new Set(listed); // one that lists none says nothing about them
      if (this.saved.size) this.askSoon();
    }
  }

  /** Their steps, the latest first. One that is younger than what the backend has said is there. */
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
    this.wait = SETTLED_MS; // but what the history tells of has settled long ago
  }

  async ask() {
    try {
      const answer = await fetch(`/parts/runs/${encodeURIComponent(this.run)}/checkpoints`, { headers: headers() });
      const { kept } = answer.ok ? await answer.json() : {};
      if (!kept) return;
      this.kept = new Set(kept);
      this.changed();
    } catch { /* Studio is away: what was known stays */ }
  }
}
