// A chart: lines over steps, drawn by uPlot. Hover reads it, dragging or + and − zoom it, the arrow keys walk through it.
// Charts of one group share the place of the cursor and what is zoomed into.

import { smoothed, short, thinned } from "./metrics.js";

const VENDOR = "/static/vendor/uPlot-1.6.32";
const MOST_POINTS = 3000;

let loading = null;
/** uPlot, loaded by the pages that have charts. */
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

/** Charts that are looked at together. */
export class Group {
  constructor() {
    this.charts = [];
    this.range = null;
    this.key = `group-${Math.random()}`;
    document.addEventListener("studio:theme", () => this.rebuild());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  add(chart) {
    this.charts.push(chart);
    return chart;
  }

  /** Show these steps alone; null is all of them. */
  zoom(range) {
    this.range = range;
    for (const chart of this.charts) chart.draw();
  }

  /** `factor` below 1 comes nearer, around the middle of what is shown. */
  scale(factor, chart) {
    const [from, to] = chart.shownRange();
    const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
    const [first, last] = chart.fullRange();
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
   * `lines`: `{label, series, column}`, series being the number of a colour. `options`: `smoothing` (0 to 0.99),
   * `log`, `fromZero`, `format` (of a value), `none` (the words where there is nothing to draw), `tall`.
   */
  constructor(group, title, lines, options) {
    this.group = group;
    group.add(this);
    this.title = title;
    this.lines = lines;
    this.options = { smoothing: 0, log: false, format: short, none: "Nothing yet.", ...options };
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

  fullRange() {
    const filled = this.lines.filter((line) => line.column.length);
    const firsts = filled.map((line) => line.column.steps[0]);
    const lasts = filled.map((line) => line.column.steps[line.column.length - 1]);
    return [Math.min(...firsts), Math.max(...lasts)];
  }

  shownRange() {
    return this.group.range ?? this.fullRange();
  }

  get smoothing() {
    return this.stage ? this.options.smoothing : 0;
  }

  /** What is to be drawn, as uPlot has it: steps, then for each line its points and its smoothed ones. */
  data() {
    const [from, to] = this.shownRange();
    const tables = this.lines.map(({ column }) => {
      const smooth = smoothed(column.values, this.smoothing);
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
    const none = this.points === 0;
    this.empty.hidden = !none;
    if (none || !this.area.clientWidth) return;
    if (!this.plot || this.stage !== stageOf(this.points)) this.create();
    else {
      this.plot.setData(this.data(), false);
      this.rescale();
    }
    this.describe();
    this.tell();
  }

  rescale() {
    const [min, max] = this.shownRange();
    this.plot.setScale("x", { min, max: max > min ? max : min + 1 });
  }

  create() {
    this.plot?.destroy();
    this.stage = stageOf(this.points);
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
      scales: { x: { time: false, auto: false }, y: { distr: this.options.log ? 3 : 1, range: this.options.log ? undefined : this.options.fromZero ? (_, __, high) => [0, (high || 1) * 1.15] : range } },
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
      hooks: { setCursor: [() => this.tell()], setSelect: [(plot) => this.onSelect(plot)] },
    };
  }

  seriesOf(line) {
    const stroke = colour(this.figure, `--series-${line.series}`);
    const smoothing = this.smoothing > 0;
    const few = stageOf(line.column.length) < 2;
    const one = { label: line.label, stroke, points: { show: few, size: 4, fill: stroke }, spanGaps: false };
    return [
      { ...one, width: smoothing ? 1 : 1.75, alpha: smoothing ? 0.28 : 1 },
      { ...one, width: 2, show: smoothing, points: { show: false } },
    ];
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
    const at = Math.min(Math.max((this.plot.cursor.idx ?? (by > 0 ? -1 : steps.length)) + by, 0), steps.length - 1);
    this.plot.setCursor({ left: this.plot.valToPos(steps[at], "x"), top: 20 });
  }

  /** The values under the cursor, or the last ones. */
  tell() {
    const at = this.plot?.cursor.idx;
    this.readout.replaceChildren();
    if (!this.points) return;
    if (at === null || at === undefined || this.plot.cursor.left < 0) {
      if (this.lines.length === 1) this.readout.append(bold(this.options.format(this.lines[0].column.last)));
      return;
    }
    const data = this.plot.data;
    this.readout.append(`step ${data[0][at]}  `);
    this.lines.forEach((line, i) => {
      const value = data[1 + 2 * i][at];
      if (value === undefined) return;
      if (this.lines.length > 1) this.readout.append(swatch(line.series));
      this.readout.append(bold(value === null ? "NaN" : this.options.format(value)), " ");
    });
  }

  /** The chart in words, for those who do not see it. */
  describe() {
    const words = this.lines.filter((line) => line.column.length).map(({ label, column }) => {
      const [first, last] = [column.steps[0], column.steps[column.length - 1]];
      return `${label}: ${this.options.format(column.values[0])} at step ${first}, ${this.options.format(column.last)} at step ${last}`;
    });
    this.area.setAttribute("aria-label", `${this.title}. ${words.join("; ")}. Arrow keys read it, plus and minus zoom.`);
  }
}

/** 0: too few points to smooth; 1: few enough to show each; 2: many. */
function stageOf(points) {
  return points < 12 ? 0 : points < 40 ? 1 : 2;
}

const INCREMENTS = [1, 2, 5].flatMap((n) => [...Array(9).keys()].map((power) => n * 10 ** power)).sort((a, b) => a - b);

function range(_, low, high) {
  if (low === null) return [0, 1];
  const spread = [high - low, Math.abs(high), 1].find((size) => size > 1e-300); // what is smaller cannot be drawn
  const margin = spread * 0.08;
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

/** A colour of tokens.css as a canvas takes it. */
function colour(element, name) {
  const probe = element.ownerDocument.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

function bold(text) {
  return make("b", "", text);
}

function swatch(series) {
  return make("span", `swatch series-${series}`);
}

/** All charts of a group as one picture. */
export async function pictureOf(group, name) {
  const drawn = group.charts.filter((chart) => chart.plot);
  const scale = devicePixelRatio;
  const width = Math.max(...drawn.map((chart) => chart.plot.width)) * scale;
  const head = 34 * scale;
  const height = drawn.reduce((sum, chart) => sum + chart.plot.height * scale + head, 0);
  const canvas = Object.assign(make("canvas"), { width: width + 32 * scale, height: height + head });
  const pen = canvas.getContext("2d");
  pen.fillStyle = colour(document.body, "--surface");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = colour(document.body, "--ink");
  pen.textBaseline = "middle";
  let top = head / 2;
  for (const chart of drawn) {
    pen.font = `600 ${14 * scale}px ${getComputedStyle(document.body).fontFamily}`;
    pen.fillText(chart === drawn[0] ? `${name} · ${chart.title}` : chart.title, 16 * scale, top + head / 2);
    pen.drawImage(chart.plot.ctx.canvas, 8 * scale, top + head);
    top += chart.plot.height * scale + head;
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = Object.assign(make("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
