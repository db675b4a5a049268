// The values of a line with few points, written at the points; the lowest is emphasised.

import { colour } from "./dom.js";

export const FEW = 12; // points: below this, each gets its value
const [GAP, HEIGHT] = [9, 14]; // px, of css

/** The index of the lowest value of a column; null for fewer than two values. */
export function best({ values }) {
  const finite = values.filter(Number.isFinite);
  return finite.length > 1 ? values.indexOf(Math.min(...finite)) : null;
}

/** Write the values: the lowest and the last first, the others where they fit. */
export function writeValues(plot, line, format, figure) {
  const { column } = line;
  if (column.length >= FEW) return;
  const lowest = best(column);
  const order = [...new Set([lowest ?? 0, column.length - 1, ...column.values.keys()])];
  const taken = [];
  const pen = plot.ctx;
  const [strong, soft] = [colour(figure, `--series-${line.series}`), colour(figure, "--ink-soft")];
  pen.save();
  for (const index of order) {
    if (!Number.isFinite(column.values[index])) continue;
    pen.fillStyle = index === lowest ? strong : soft;
    pen.font = `${index === lowest ? 600 : 400} ${12 * devicePixelRatio}px ${getComputedStyle(document.body).fontFamily}`;
    write(plot, column.steps[index], column.values[index], format(column.values[index]), leaning(column.values, index), taken);
  }
  pen.restore();
}

/** The side away from the line: -1 (left) where it rises, 1 (right) where it falls. */
function leaning(values, index) {
  const [before, after] = [values[index - 1] ?? values[index], values[index + 1] ?? values[index]];
  return Math.sign(before - after) || 0;
}

/** Write a value above its point, inside the chart, unless it would overlap another. `lean`: to the right. */
function write(plot, step, value, text, lean, taken) {
  const [pen, scale] = [plot.ctx, devicePixelRatio];
  const [x, y] = [plot.valToPos(step, "x", true), plot.valToPos(value, "y", true)];
  const { left, top, width } = plot.bbox;
  if (x < left - 1 || x > left + width + 1) return; // outside the zoomed range
  const half = pen.measureText(text).width / 2;
  const middle = Math.min(Math.max(x + lean * (half + 2 * scale), left + half), left + width - half);
  const foot = Math.max(y - GAP * scale, top + HEIGHT * scale);
  const isTaken = taken.some((other) => Math.abs(other.middle - middle) < other.half + half + 4 * scale && Math.abs(other.foot - foot) < HEIGHT * scale);
  if (isTaken) return;
  taken.push({ middle, half, foot });
  pen.textAlign = "center";
  pen.textBaseline = "alphabetic";
  pen.fillText(text, middle, foot);
}
