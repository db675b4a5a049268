// A line chart over steps, drawn by uPlot. Hovering shows values, dragging or + and − zoom, the arrow keys move the cursor.
// The charts of a group share the cursor and the zoom.

import { colour, icon, make } from "./dom.js";
import { smoothed, short, thinned } from "./metrics.js";
import { FEW, best, writeValues } from "./values.js";

const VENDOR = "/static/vendor/uPlot-1.6.32";
const MOST_POINTS = 3000;

let loading = null;
/** Load uPlot, for pages with charts. */
export function loadCharts() {
  loading ??= new Promise((resolve, reject) => {
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: `${VENDOR}.min.css` });
    const script = Object.assign(document.createElement("script"), { src: `${VENDOR}.iife.min.js` });
    script.addEventListener("load", () => resolve(globalThis.uPlot));
    script.addEventListener("error", reject);
    document.head.append(style, script);
  });
  return loading;
}

/** Charts with a common cursor and zoom. */
export class Group {
  constructor() {
    this.charts = [];
    this.range = null;
    this.reading = null; // the step selected with the arrow keys
    this.key = `group-${Math.random()}`;
    document.addEventListener("studio:theme", () => this.rebuild());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  add(chart) {
    this.charts.push(chart);
    return chart;
  }

  /** Show a range of steps; null for all. */
  zoom(range) {
    this.range = range;
    for (const chart of this.charts) chart.draw();
  }

  /** The first and the last step of any chart. */
  fullRange() {
    const columns = this.charts.flatMap((chart) => chart.filled.map((line) => line.column));
    return [Math.min(...columns.map(({ steps }) => steps[0])), Math.max(...columns.map(({ steps }) => steps[steps.length - 1]))];
  }

  /** Zoom around the middle of the shown range; in for a `factor` below 1. */
  scale(factor, chart) {
    const [from, to] = chart.shownRange();
    const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
    const [first, last] = this.fullRange();
    const range = [Math.max(first, middle - half), Math.min(last, middle + half)];
    this.zoom(range[0] <= first && range[1] >= last ? null : range);
  }

  set(options) {
    for (const chart of this.charts) Object.assign(chart.options, options);
    if ("log" in options) this.rebuild();
    else this.zoom(this.range);
  }

  rebuild() {
    for (const chart of this.charts) chart.rebuild();
  }
}

export class Chart {
  /**
   * `lines`: `{label, series, column, plain}`: `series` is the number of a colour, a `plain` line is not smoothed.
   * `options`: `smoothing` (0 to 0.99), `log`, `fromZero`, `format` (of a value), `none` (the text of an empty
   * chart), `tall`, `several` (each line is of another run), `lowest` (the lowest value is emphasised).
   */
  constructor(group, title, lines, options) {
    this.group = group;
    group.add(this);
    this.title = title;
    this.lines = lines;
    this.options = { smoothing: 0, log: false, format: short, none: "No values yet.", ...options };
    this.figure = this.build();
    this.plot = null;
    new ResizeObserver(() => this.resize()).observe(this.area);
  }

  build() {
    const figure = make("figure", "chart");
    figure.classList.toggle("tall", Boolean(this.options.tall));
    this.readout = make("span", "readout");
    const caption = make("figcaption");
    caption.append(make("span", "", this.title), this.readout);
    this.area = make("div", "plot");
    this.area.tabIndex = 0;
    this.area.setAttribute("role", "group");
    this.area.setAttribute("aria-roledescription", "chart");
    this.area.addEventListener("keydown", (event) => this.onKey(event));
    this.area.addEventListener("pointermove", () => (this.group.reading = null));
    this.empty = make("p", "none", this.options.none);
    figure.append(caption, this.area, this.empty, this.buildTools());
    return figure;
  }

  buildTools() {
    const tools = make("div", "tools");
    const add = (symbol, label, action) => {
      const button = make("button", "ghost icon-button");
      Object.assign(button, { type: "button", title: label });
      button.setAttribute("aria-label", `${label}: ${this.title}`);
      button.append(icon(symbol));
      button.addEventListener("click", action);
      tools.append(button);
    };
    add("plus", "Zoom in", () => this.group.scale(0.5, this));
    add("minus", "Zoom out", () => this.group.scale(2, this));
    add("expand", "Show all", () => this.group.zoom(null));
    return tools;
  }

  get points() {
    return this.lines.reduce((sum, line) => sum + line.column.length, 0);
  }

  /** The lines with points. */
  get filled() {
    return this.lines.filter((line) => line.column.length);
  }

  shownRange() {
    return this.group.range ?? this.group.fullRange();
  }

  /** The smoothing of a line: 0 if it has few points or is `plain`. */
  smoothingOf(line) {
    return line.plain || stageOf(line) === 0 ? 0 : this.options.smoothing;
  }

  /** The data for uPlot: the steps, then for each line its values and its smoothed values. */
  data() {
    const [from, to] = this.shownRange();
    const tables = this.lines.map((line) => {
      const { column } = line;
      const smooth = smoothed(column.values, this.smoothingOf(line));
      const picked = thinned(column.steps, column.values, from, to, MOST_POINTS);
      const drawn = (values) => picked.map((i) => (this.drawable(values[i]) ? values[i] : null));
      return [picked.map((i) => column.steps[i]), drawn(column.values), drawn(smooth)];
    });
    return tables.length === 1 ? tables[0] : globalThis.uPlot.join(tables);
  }

  drawable(value) {
    return Number.isFinite(value) && (!this.options.log || value > 0);
  }

  draw() {
    const none = !this.filled.some(({ column }) => column.values.some(Number.isFinite));
    this.empty.hidden = !none;
    if (none && this.points) this.empty.textContent = "No value is a finite number.";
    if (none || !this.area.clientWidth) return;
    if (!this.plot || this.stages !== String(this.lines.map(stageOf))) this.create();
    else {
      this.plot.setData(this.data(), false);
      this.rescale();
    }
    this.describe();
    this.tell();
  }

  rescale() {
    const [min, max] = this.shownRange();
    this.plot.setScale("x", max > min ? { min, max } : { min: min - 1, max: max + 1 });
  }

  create() {
    this.plot?.destroy();
    this.stages = String(this.lines.map(stageOf));
    this.plot = new globalThis.uPlot(this.layout(), this.data(), this.area);
    this.rescale();
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    this.draw();
  }

  resize() {
    if (!this.plot) return this.draw();
    const { clientWidth: width, clientHeight: height } = this.area;
    if (width && (width !== this.plot.width || height !== this.plot.height)) this.plot.setSize({ width, height });
  }

  layout() {
    const [ink, line] = [colour(this.figure, "--ink-soft"), colour(this.figure, "--line")];
    const axis = { stroke: ink, font: `12px ${getComputedStyle(document.body).fontFamily}`, grid: { stroke: line, width: 1 }, ticks: { show: false } };
    return {
      width: this.area.clientWidth,
      height: this.area.clientHeight,
      legend: { show: false },
      padding: [8, 20, 0, 0],
      scales: { x: { time: false, auto: false }, y: { distr: this.options.log ? 3 : 1, range: this.rangeOf() } },
      axes: [
        { ...axis, size: 28, incrs: INCREMENTS, values: (_, splits) => splits.map((step) => short10(step)) },
        { ...axis, size: 54, values: (_, splits) => splits.map((value) => (value === null ? "" : tickLabel(value))) },
      ],
      series: [{}, ...this.lines.flatMap((one) => this.seriesOf(one))],
      cursor: {
        sync: { key: this.group.key, scales: ["x", null], setSeries: false },
        drag: { x: true, y: false, setScale: false, dist: 4 },
        bind: { dblclick: () => () => (this.group.zoom(null), null) },
        points: { size: 6 },
        y: false,
      },
      hooks: {
        setCursor: [() => this.tell()],
        setSelect: [(plot) => this.onSelect(plot)],
        draw: [(plot) => this.onDraw(plot)],
      },
    };
  }

  seriesOf(line) {
    const stroke = colour(this.figure, `--series-${line.series}`);
    const smoothing = this.smoothingOf(line) > 0;
    const few = line.column.length < FEW;
    const points = few ? { size: 8, width: 2, fill: colour(this.figure, "--surface") } : { size: line.plain ? 5 : 4, fill: stroke };
    const one = { label: line.label, stroke, points: { show: stageOf(line) < 2, stroke, ...points }, spanGaps: false };
    return [
      { ...one, width: smoothing ? 1 : 1.75, alpha: smoothing ? 0.28 : 1 },
      { ...one, width: 2, show: smoothing, points: { show: false } },
    ];
  }

  /** The range of the vertical axis, with a margin, which is larger for few points. */
  rangeOf() {
    if (this.options.log) return undefined;
    if (this.options.fromZero) return (_, __, high) => [0, (high || 1) * 1.15];
    return (_, low, high) => range(low, high, this.points < FEW ? 0.3 : 0.08);
  }

  /** After a draw: write the values, and move the cursor back to its step. */
  onDraw(plot) {
    if (this.options.lowest) writeValues(plot, this.lines[0], this.options.format, this.figure);
    const { reading } = this.group;
    const [from, to] = this.shownRange();
    if (reading !== null && reading >= from && reading <= to) plot.setCursor({ left: plot.valToPos(reading, "x"), top: 20 });
  }

  onSelect(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const range = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (range[1] > range[0]) this.group.zoom(range);
  }

  onKey(event) {
    const actions = {
      "+": () => this.group.scale(0.5, this),
      "=": () => this.group.scale(0.5, this),
      "-": () => this.group.scale(2, this),
      0: () => this.group.zoom(null),
      Escape: () => this.group.zoom(null),
      ArrowLeft: () => this.walk(-1),
      ArrowRight: () => this.walk(1),
    };
    if (!actions[event.key] || !this.plot || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  walk(by) {
    const steps = this.plot.data[0];
    const kept = steps.indexOf(this.group.reading);
    const from = kept >= 0 ? kept : this.plot.cursor.idx ?? (by > 0 ? -1 : steps.length);
    const at = Math.min(Math.max(from + by, 0), steps.length - 1);
    this.group.reading = steps[at];
    this.plot.setCursor({ left: this.plot.valToPos(steps[at], "x"), top: 20 });
  }

  /** Show the values under the cursor, or the last ones. */
  tell() {
    const at = this.plot?.cursor.idx;
    this.readout.replaceChildren();
    if (!this.points) return;
    if (at === null || at === undefined || this.plot.cursor.left < 0) return this.tellLast();
    const data = this.plot.data;
    this.readout.append(`step ${data[0][at]}  `);
    this.lines.forEach((line, i) => {
      const value = data[1 + 2 * i][at];
      if (value !== undefined) this.tellValue(line, value);
    });
  }

  tellValue(line, value) {
    if (this.filled.length > 1) this.readout.append(swatch(line.series));
    this.readout.append(bold(value === null ? "NaN" : this.options.format(value)), " ");
  }

  /** Show the last values, with labels if there are several lines; nothing for several runs. */
  tellLast() {
    if (this.options.several) return;
    for (const line of this.filled) {
      if (this.filled.length > 1) this.readout.append(swatch(line.series), `${line.label} `);
      this.readout.append(bold(this.options.format(line.column.last)), " ");
    }
    const lowest = this.options.lowest ? best(this.lines[0].column) : null;
    if (lowest !== null) this.readout.append(`lowest at step ${this.lines[0].column.steps[lowest]}`);
  }

  /** Describe the chart for screen readers. */
  describe() {
    const words = this.filled.map(({ label, column }) => {
      const [first, last] = [column.steps[0], column.steps[column.length - 1]];
      return `${label}: ${this.options.format(column.values[0])} at step ${first}, ${this.options.format(column.last)} at step ${last}`;
    });
    this.area.setAttribute("aria-label", `${this.title}. ${words.join("; ")}. Use the arrow keys to read values, plus and minus to zoom.`);
  }
}

/** 0: too few points to smooth; 1: few enough to show each; 2: many. */
function stageOf({ column: { length } }) {
  return length < FEW ? 0 : length < 40 ? 1 : 2;
}

const INCREMENTS = [1, 2, 5].flatMap((n) => [...Array(9).keys()].map((power) => n * 10 ** power)).sort((a, b) => a - b);

function range(low, high, air) {
  if (low === null) return [0, 1];
  const spread = [high - low, Math.abs(high), 1].find((size) => size > 1e-300); // smaller ranges cannot be drawn
  const margin = spread * air;
  return [low >= 0 && low - margin < 0 ? 0 : low - margin, high + margin];
}

function short10(step) {
  return step >= 10_000 ? `${step / 1000}k` : String(step);
}

function tickLabel(value) {
  const size = Math.abs(value);
  if (value !== 0 && (size < 0.001 || size >= 10_000)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function bold(text) {
  return make("b", "", text);
}

function swatch(series) {
  return make("span", `swatch series-${series}`);
}
