// The metrics of a run as columns; smoothing and downsampling.

/** A column of (step, value) pairs that grows; a value may be NaN, which leaves a gap. */
export class Column {
  constructor() {
    this.steps = [];
    this.values = [];
  }

  push(step, value) {
    this.steps.push(step);
    this.values.push(value);
  }

  get length() {
    return this.steps.length;
  }

  get last() {
    return this.values[this.values.length - 1];
  }
}

/** The number in an event; NaN if it is not finite, undefined if it is missing. */
export function numberOf(event, key) {
  const value = event[key];
  if (typeof value === "number") return value;
  return event.nonFinite?.[key] ? NaN : undefined;
}

/** Exponential moving average with bias correction; NaN stays NaN and does not affect later values. */
export function smoothed(values, weight) {
  if (!weight) return values;
  const result = new Array(values.length);
  let [sum, norm] = [0, 0];
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i];
    if (Number.isFinite(value)) {
      sum = sum * weight + (1 - weight) * value;
      norm = norm * weight + (1 - weight);
      result[i] = sum / norm;
    } else result[i] = NaN;
  }
  return result;
}

/** First index whose step is not below `step`. */
export function indexOf(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The indices of the points to draw between two steps, at most about `most`. If there are more: the lowest and the highest
 * of each bucket, to keep spikes, and one NaN, to keep gaps. Includes one point beyond each edge.
 */
export function thinned(steps, values, from, to, most) {
  const first = Math.max(0, indexOf(steps, from) - 1);
  const last = Math.min(steps.length, indexOf(steps, to) + 2);
  const size = Math.ceil((last - first) / (most / 2));
  if (size <= 2) return Array.from({ length: last - first }, (_, i) => first + i);
  const picked = [];
  for (let start = first; start < last; start += size) {
    let [low, high, odd] = [-1, -1, -1];
    for (let i = start; i < Math.min(last, start + size); i += 1) {
      if (!Number.isFinite(values[i])) odd = i;
      else {
        if (low < 0 || values[i] < values[low]) low = i;
        if (high < 0 || values[i] > values[high]) high = i;
      }
    }
    picked.push(...[...new Set([low, high, odd])].filter((i) => i >= 0).sort((one, other) => one - other));
  }
  return picked;
}

/** Format a rate. */
export function rate(value) {
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);
}

/** Format a loss. */
export function short(value) {
  if (value === undefined || value === null) return "–";
  if (!Number.isFinite(value)) return "NaN";
  const size = Math.abs(value);
  if (value === 0) return "0";
  return size >= 0.001 && size < 1000 ? value.toFixed(4) : value.toExponential(2);
}
