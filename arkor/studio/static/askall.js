// Sends one message, with one system prompt, to each compared run: to its final adapter or latest checkpoint.

import { ask, costs, sentence, weightsOf } from "./answer.js";
import { keptSetting } from "./sampling.js";
import { follow } from "./stream.js";

export function mount(section) {
  const [system, prompt] = section.querySelectorAll("textarea");
  const [sending, stopping, place] = ["send", "stop", "answers"].map((name) => section.querySelector(`[data-${name}]`));
  const runs = [...document.querySelectorAll(".compared [data-run]")].map((element, index) => new Asked(element, index));
  let abort = null;
  system.value = keptSetting("system"); // the playground's; the runs were probably trained with it

  section.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (abort || !prompt.value.trim()) return;
    abort = new AbortController();
    place.replaceChildren(...runs.map((run) => run.article));
    [sending.hidden, stopping.hidden] = [true, false];
    const before = system.value.trim() ? [{ role: "system", content: system.value }] : [];
    const messages = [...before, { role: "user", content: prompt.value }];
    await Promise.all(runs.map((run) => run.ask(messages, abort.signal)));
    [sending.hidden, stopping.hidden] = [false, true];
    abort = null;
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    section.querySelector("form").requestSubmit();
  });
  stopping.addEventListener("click", () => abort?.abort());
  section.dataset.ready = "";
}

class Asked {
  constructor({ dataset: { run, name, status } }, index) {
    Object.assign(this, { run, status });
    this.article = document.createElement("article");
    this.article.className = `turn series-${index + 1}`;
    [this.heading, this.said, this.note] = ["h3", "p", "p"].map((tag) => this.article.appendChild(document.createElement(tag)));
    [this.said.className, this.note.className] = ["said", "note muted small"];
    [this.name, this.heading.textContent] = [name, name];
  }

  async ask(messages, signal) {
    [this.said.textContent, this.note.textContent, this.article.dataset.state] = ["", "", "busy"];
    this.note.classList.remove("problem-note");
    try {
      const step = this.status === "completed" ? "" : await latest(this.run);
      this.heading.textContent = `${this.name}, ${step ? `step ${step}` : "final adapter"}`;
      const onText = (text) => (this.said.textContent += text);
      const told = await ask({ ...weightsOf({ run: this.run, step }), messages }, { signal, onText });
      this.end("done", costs(told));
    } catch (error) {
      this.end(error.name === "AbortError" ? "stopped" : "failed", error.name === "AbortError" ? "Stopped." : sentence(error.message));
    }
  }

  end(state, note) {
    this.article.dataset.state = state;
    this.note.textContent = note;
    this.note.classList.toggle("problem-note", state === "failed");
  }
}

const [QUIET_MS, LONGEST_MS] = [600, 5000];

/** The step of a run's latest checkpoint, "" for its final adapter: from its events, read until a pause. */
function latest(run) {
  return new Promise((resolve, reject) => {
    let step = null;
    let timer = setTimeout(done, LONGEST_MS);
    const limit = setTimeout(done, LONGEST_MS); // a fast run never pauses
    const leave = follow(`/streams/runs/${encodeURIComponent(run)}`, {
      onEvents(events) {
        for (const event of events) if (event.type === "checkpoint.saved") step = String(event.step);
        if (events.some(({ type }) => type === "training.completed")) step = "";
        clearTimeout(timer);
        timer = setTimeout(done, QUIET_MS);
      },
      onState: (state) => state === "over" && done(),
    });
    function done() {
      clearTimeout(timer);
      clearTimeout(limit);
      leave?.();
      if (step === null) reject(new Error("This run has no checkpoint yet. Try again when it has one."));
      else resolve(step);
    }
  });
}
