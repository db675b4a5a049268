// Charts as a PNG file.

import { colour, make } from "./dom.js";

/** Draw all charts of a group in one image. */
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
    const heading = chart === drawn[0] ? `${name} · ${chart.title}` : chart.title;
    pen.fillText(heading, 16 * scale, top + head / 2);
    if (chart.filled.length > 1) legend(pen, chart, pen.measureText(heading).width + 32 * scale, top + head / 2, scale);
    pen.drawImage(chart.plot.ctx.canvas, 8 * scale, top + head);
    top += chart.plot.height * scale + head;
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Draw the legend next to the heading. */
function legend(pen, chart, left, middle, scale) {
  const ink = pen.fillStyle;
  pen.font = `400 ${12 * scale}px ${getComputedStyle(document.body).fontFamily}`;
  for (const { label, series } of chart.filled) {
    pen.fillStyle = colour(document.body, `--series-${series}`);
    pen.fillRect(left, middle - 5 * scale, 10 * scale, 10 * scale);
    pen.fillStyle = ink;
    pen.fillText(label, left + 16 * scale, middle);
    left += pen.measureText(label).width + 32 * scale;
  }
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = Object.assign(make("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
