// The event log of a run. Only the visible rows are in the page, so that a hundred thousand events are no problem.

import { make } from "./dom.js";
import { numberOf, short } from "./metrics.js";

const ROW = 28; // px, as in studio.css
const SPARE = 12;

export class EventLog {
  constructor(box, count) {
    Object.assign(this, { box, count, all: [], shown: [], numbers: true });
    this.sizer = make("div");
    box.append(this.sizer);
    box.addEventListener("scroll", () => this.draw());
  }

  take(events) {
    for (const event of events) {
      this.all.push(event);
      if (this.numbers || event.type !== "training.log") this.shown.push(event);
    }
  }

  showNumbers(yes) {
    this.numbers = yes;
    this.shown = yes ? [...this.all] : this.all.filter((event) => event.type !== "training.log");
    this.height = -1;
    this.draw();
  }

  /** Draw the visible rows; keep scrolling along if the end is visible. */
  draw() {
    const { box } = this;
    const atEnd = this.height === undefined || box.scrollTop + box.clientHeight >= this.height - ROW;
    const height = this.shown.length * ROW;
    if (height !== this.height) {
      this.height = height;
      this.sizer.style.height = `${height}px`;
      this.count.textContent = this.shown.length.toLocaleString("en");
      if (atEnd) box.scrollTop = height;
    }
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - SPARE);
    const last = Math.min(this.shown.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + SPARE);
    const rows = [];
    for (let i = first; i < last; i += 1) rows.push(row(this.shown[i], i));
    this.sizer.replaceChildren(...rows);
  }
}

function row(event, index) {
  const kind = kindOf(event);
  const element = make("div", "event");
  element.dataset.kind = kind;
  element.style.top = `${index * ROW}px`;
  const time = new Date(event.timestamp);
  element.append(
    make("span", "muted", Number.isNaN(time.getTime()) ? "–" : time.toLocaleTimeString(undefined, { hour12: false })),
    make("span", "muted", LABELS[kind] ?? kind),
    make("span", "", told(event)),
  );
  return element;
}

const LABELS = { log: "step", saved: "checkpoint" };

/** The kind of an event; on the wire, a cancelled run is a failed one with this error. */
export function kindOf(event) {
  return event.error === "Job cancelled" ? "cancelled" : event.type.split(".").pop();
}

function told(event) {
  if (event.type === "training.log") return numbers(event);
  if (event.type === "checkpoint.saved") return `step ${event.step}`;
  if (event.type === "training.started") return event.totalSteps ? `${event.totalSteps} steps` : "";
  if (event.type === "training.resumed") return `from step ${event.step}: ${event.reason ?? ""}`;
  return String(event.message ?? event.error ?? "");
}

function numbers(event) {
  const parts = [`${event.step}`];
  const add = (label, key, format = short) => {
    const value = numberOf(event, key);
    if (value !== undefined) parts.push(`${label} ${format(value)}`);
  };
  add("loss", "loss");
  add("eval loss", "evalLoss");
  add("learning rate", "learningRate", (value) => value.toExponential(2));
  add("epoch", "epoch", (value) => value.toFixed(2));
  add("samples/s", "samplesPerSecond", (value) => value.toFixed(1));
  return parts.join("   ");
}
