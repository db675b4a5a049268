// Relative times and durations, updated continuously.

const STEPS = [[60, "second"], [60, "minute"], [24, "hour"], [7, "day"]];
const words = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });

export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

function ago(stamp) {
  let amount = (Date.now() - Date.parse(stamp)) / 1000;
  if (amount < 10) return "just now";
  for (const [size, unit] of STEPS) {
    if (amount < size) return words.format(-Math.round(amount), unit);
    amount /= size;
  }
  return new Date(stamp).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

/** Update every time in `root`. */
export function tick(root) {
  for (const element of root.querySelectorAll("time[data-ago]")) write(element, ago(element.dateTime));
  for (const element of root.querySelectorAll("time[data-since]"))
    write(element, clock((Date.now() - Date.parse(element.dataset.since)) / 1000));
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
