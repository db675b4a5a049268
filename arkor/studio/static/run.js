// The page of a run: metrics, charts, checkpoints and a log, from its events.

import { Chart, Group, loadCharts } from "./chart.js";
import { Checkpoints } from "./checkpoints.js";
import { icon, make } from "./dom.js";
import { EventLog, kindOf } from "./eventlog.js";
import { Column, numberOf, rate, short } from "./metrics.js";
import { download, pictureOf } from "./picture.js";
import { follow } from "./stream.js";
import { clock } from "./time.js";

const RECENT = 24; // steps for the average speed
const ENDED = { completed: "Completed", failed: "Failed", cancelled: "Cancelled" };
const NUMBERS = ["loss", "evalLoss", "learningRate", "epoch", "samplesPerSecond"];

export async function mount(page) {
  new RunPage(page, await loadCharts()).open();
}

class RunPage {
  constructor(page) {
    this.page = page;
    this.columns = Object.fromEntries(["loss", "evalLoss", "learningRate", "speed"].map((name) => [name, new Column()]));
    this.rows = []; // of the CSV: one for each event with numbers
    this.marks = []; // [step, time] of the latest steps
    this.checkpoints = new Checkpoints(page.dataset.run, () => this.listCheckpoints());
    this.total = Number(page.dataset.total) || null;
    this.step = 0;
    this.began = Date.parse(page.dataset.started) || null;
    this.ended = null;
    this.log = new EventLog(this.find("events"), this.find("event-count"));
    this.buildCharts();
    this.listen();
  }

  find(name) {
    return this.page.querySelector(`[data-${name}]`);
  }

  fact(name) {
    return this.page.querySelector(`[data-fact="${name}"]`);
  }

  buildCharts() {
    const smoothing = Number(this.find("smoothing").value);
    this.group = new Group();
    const { loss, evalLoss, learningRate, speed } = this.columns;
    const line = (label, series, column, plain = false) => ({ label, series, column, plain });
    const charts = [
      new Chart(this.group, "Loss", [line("loss", 1, loss), line("eval loss", 2, evalLoss, true)], { smoothing, none: "No steps yet." }),
      new Chart(this.group, "Eval loss", [line("eval loss", 2, evalLoss)], { lowest: true, none: this.page.dataset.evaluations }),
      new Chart(this.group, "Learning rate", [line("learning rate", 3, learningRate)], { format: (value) => (value ? value.toExponential(2).replace("e+", "e") : "0"), none: "No values yet." }),
      new Chart(this.group, "Speed", [line("speed", 5, speed)], { smoothing, format: (value) => `${rate(value)} ${this.unit ?? "steps"}/s`, none: "Shown from the second step on.", fromZero: true }),
    ];
    this.lossCharts = charts.slice(0, 2);
    this.smoothCharts = [charts[0], charts[3]];
    this.find("charts").append(...charts.map((chart) => chart.figure));
  }

  listen() {
    const smoothing = this.find("smoothing");
    smoothing.addEventListener("input", () => {
      smoothing.nextElementSibling.textContent = Number(smoothing.value).toFixed(2);
      for (const chart of this.smoothCharts) {
        chart.options.smoothing = Number(smoothing.value);
        chart.rebuild();
      }
    });
    this.find("log").addEventListener("change", (event) => {
      for (const chart of this.lossCharts) {
        chart.options.log = event.target.checked;
        chart.rebuild();
      }
    });
    this.find("numbers").addEventListener("change", (event) => this.log.showNumbers(event.target.checked));
    this.find("csv").addEventListener("click", () => download(new Blob([this.csv()], { type: "text/csv" }), `${this.fileName()}.csv`));
    this.find("png").addEventListener("click", async () => download(await pictureOf(this.group, this.page.dataset.name), `${this.fileName()}.png`));
  }

  open() {
    this.stop = follow(`/streams/runs/${encodeURIComponent(this.page.dataset.run)}`, {
      onEvents: (events) => this.take(events),
      onState: (state, reason) => this.onState(state, reason),
      evenAway: true, // the tab's title shows the progress
    });
    this.clock = setInterval(() => (this.page.isConnected ? this.tellTime() : this.leave()), 1000);
  }

  leave() {
    this.stop();
    clearInterval(this.clock);
  }

  /* Events */

  take(events) {
    if (!this.page.isConnected) return;
    for (const event of events) this.takeOne(event);
    this.log.take(events);
    this.tellTitle();
    this.schedule();
  }

  takeOne(event) {
    const at = Date.parse(event.timestamp);
    this.checkpoints.take(event, { event, loss: this.columns.loss.last });
    if (event.type === "training.log") this.takeNumbers(event, at);
    else if (event.type === "training.started") {
      this.total = event.totalSteps ?? this.total;
      this.began ??= at;
      this.marks = [[0, at]];
    } else if (event.type === "training.resumed") {
      this.marks = []; // the interruption must not count as a step
      this.phase = `Resumed from step ${event.step}: ${event.reason ?? "its process ended"}`;
    } else if (event.type === "training.preparing") this.phase = event.message;
    else if (["training.completed", "training.failed", "training.cancelled"].includes(event.type)) this.end(event, at);
  }

  takeNumbers(event, at) {
    const { loss, evalLoss, learningRate } = this.columns;
    this.step = event.step;
    this.phase = "";
    for (const [name, column] of [["loss", loss], ["evalLoss", evalLoss], ["learningRate", learningRate]]) {
      const value = numberOf(event, name);
      if (value !== undefined) column.push(event.step, value);
    }
    if (Number.isNaN(numberOf(event, "loss")) && this.divergedAt === undefined) this.divergedAt = event.step;
    this.takeSpeed(event, at);
    this.rows.push([event.step, event.timestamp, ...NUMBERS.map((name) => numberOf(event, name) ?? "")]);
  }

  takeSpeed(event, at) {
    const told = numberOf(event, "samplesPerSecond");
    const last = this.marks[this.marks.length - 1];
    if (told !== undefined) {
      this.unit = "samples";
      this.columns.speed.push(event.step, told);
    } else if (!this.unit && last && event.step > last[0] && at > last[1])
      this.columns.speed.push(event.step, ((event.step - last[0]) * 1000) / (at - last[1]));
    if (!last || event.step > last[0]) this.marks.push([event.step, at]);
    if (this.marks.length > RECENT) this.marks.shift();
  }

  end(event, at) {
    this.ended = { kind: kindOf(event), at, artifacts: event.artifacts ?? [] };
    const head = document.getElementById("run-head");
    setTimeout(() => htmx.trigger(head, "refresh"), 300);
    head.removeAttribute("data-every");
  }

  onState(state, reason) {
    this.broken = state === "waiting" ? `The event stream was interrupted; reconnecting. The run itself continues. ${reason ?? ""}` : "";
    this.tellPhase();
    if (state === "over") htmx.trigger(document.getElementById("run-head"), "refresh");
  }

  /* Display */

  // Draw at most a few times per second.
  schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    setTimeout(() => requestAnimationFrame(() => {
      this.scheduled = false;
      this.show();
    }), this.drawn ? 250 : 30);
    this.drawn = true;
  }

  show() {
    for (const chart of this.group.charts) chart.draw();
    this.log.draw();
    this.tellStanding();
    this.tellPhase();
    this.tellTime();
    this.listCheckpoints();
    const diverged = this.find("diverged");
    diverged.hidden = this.divergedAt === undefined;
    if (this.divergedAt !== undefined)
      this.find("diverged-text").textContent = `Training has diverged at step ${this.divergedAt}. ${this.ended ? "Start" : "Cancel this run and start"} it again with a smaller learning rate.`;
    this.find("charts").parentElement.hidden = Boolean(this.ended) && !this.rows.length; // it ended before its first step
  }

  /** The progress, from 0 to 1. */
  get share() {
    return this.ended?.kind === "completed" ? 1 : this.total ? Math.min(1, this.step / this.total) : 0;
  }

  /** Show the progress or the result in the tab's title. */
  tellTitle() {
    const progress = this.total ? `${Math.floor(this.share * 100)} %` : this.step ? `step ${this.step}` : "";
    const standing = this.ended ? ENDED[this.ended.kind] : progress;
    document.title = [standing, this.page.dataset.name].filter(Boolean).join(" · ");
  }

  tellPhase() {
    const live = this.find("live");
    live.textContent = this.broken || (this.ended ? "" : this.phase ?? "");
    live.hidden = !live.textContent;
    live.dataset.state = this.broken ? "waiting" : "live";
  }

  tellStanding() {
    const { loss, evalLoss } = this.columns;
    const step = this.fact("step");
    step.replaceChildren(String(this.step));
    if (this.total) step.append(make("small", "", ` / ${this.total}`));
    this.fact("loss").textContent = loss.length ? short(loss.last) : "–";
    this.fact("eval").textContent = evalLoss.length ? short(evalLoss.last) : "–";
    const bar = this.find("progress");
    bar.firstElementChild.style.width = `${this.share * 100}%`;
    bar.setAttribute("aria-valuenow", String(this.step));
    bar.setAttribute("aria-valuemax", String(this.total ?? this.step));
    if (this.ended) bar.dataset.end = this.ended.kind;
  }

  tellTime() {
    const pace = this.pace();
    this.fact("speed").textContent = pace ? (pace >= 1 ? `${pace.toFixed(1)} s/step` : `${rate(1 / pace)} steps/s`) : "–";
    if (this.ended) {
      this.fact("time-label").textContent = "Duration";
      this.fact("time").textContent = this.began ? clock((this.ended.at - this.began) / 1000) : "–";
    } else if (pace && this.total && this.step) {
      const since = (Date.now() - this.marks[this.marks.length - 1][1]) / 1000;
      this.fact("time").textContent = clock(pace * (this.total - this.step) - Math.min(since, pace));
    }
  }

  /** Seconds per step, over the latest steps. */
  pace() {
    const [first, last] = [this.marks[0], this.marks[this.marks.length - 1]];
    return first && last[0] > first[0] ? (last[1] - first[1]) / 1000 / (last[0] - first[0]) : null;
  }

  listCheckpoints() {
    const { steps, saved } = this.checkpoints;
    const signature = `${steps} ${saved.size} ${this.ended?.kind}`;
    if (this.listed === signature) return;
    this.listed = signature;
    const rows = steps.map((step) => {
      const { event, loss } = saved.get(step);
      return this.row(`step ${step}`, loss, event.artifacts?.find((a) => a.kind === "checkpoint"), event.timestamp, `/playground?run=${encodeURIComponent(this.page.dataset.run)}&step=${step}`);
    });
    const final = this.ended?.artifacts.find((artifact) => artifact.kind === "final");
    if (final) rows.unshift(this.row("final", this.columns.loss.last, final, new Date(this.ended.at).toISOString(), `/playground?run=${encodeURIComponent(this.page.dataset.run)}`));
    if (!rows.length && this.ended) this.find("checkpoints").firstElementChild.textContent = "No checkpoints were saved.";
    if (!rows.length) return;
    this.find("checkpoints").replaceChildren(this.table(rows));
    this.find("checkpoint-count").textContent = saved.size > steps.length ? `${steps.length} kept of ${saved.size}` : `${steps.length} saved`;
  }

  table(rows) {
    const table = make("table", "table");
    const head = make("tr");
    for (const [name, kind] of [["Adapter", ""], ["Loss", "number"], ["Size", "number"], ["Playground", "number"]]) {
      const cell = make("th", kind, name);
      cell.scope = "col";
      head.append(cell);
    }
    const [thead, body, around] = [make("thead"), make("tbody"), make("div", "scroll scroll-y")];
    thead.append(head);
    body.append(...rows);
    table.append(thead, body);
    around.tabIndex = 0;
    around.setAttribute("role", "region");
    around.setAttribute("aria-label", "Checkpoints and the final adapter");
    around.append(table);
    return around;
  }

  row(name, loss, artifact, time, address) {
    const row = make("tr");
    const first = make("td", "", name);
    if (artifact?.path) first.title = artifact.path;
    const chat = make("a", "button small");
    chat.href = address;
    const words = make("span", "", "Chat");
    words.append(make("span", "full-width-only", " with it"));
    chat.append(icon("chat"), words);
    chat.setAttribute("aria-label", `Chat with ${name}`);
    const last = make("td", "number");
    last.append(chat);
    row.append(first, make("td", "number", loss === undefined ? "–" : short(loss)), make("td", "number muted", sizeOf(artifact?.bytes)), last);
    row.title = new Date(time).toLocaleString();
    return row;
  }

  /* Downloads */

  csv() {
    const head = ["step", "timestamp", "loss", "eval_loss", "learning_rate", "epoch", "samples_per_second"];
    return `${[head, ...this.rows].map((row) => row.join(",")).join("\n")}\n`;
  }

  fileName() {
    return `${this.page.dataset.name.replace(/[^\w.-]+/g, "-").slice(0, 60)}-${this.page.dataset.run.slice(0, 8)}`;
  }
}

function sizeOf(bytes) {
  if (typeof bytes !== "number") return "–";
  const power = Math.min(4, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${Number((bytes / 1000 ** power).toPrecision(3))} ${["bytes", "kB", "MB", "GB", "TB"][power]}`;
}
