// The comparison of runs: their losses in one chart, updated live, and their different settings.

import { Chart, Group, loadCharts } from "./chart.js";
import { Column, numberOf } from "./metrics.js";
import { follow } from "./stream.js";

export async function mount(page) {
  page.querySelector("[data-same]")?.addEventListener("change", ({ target }) => {
    for (const row of page.querySelectorAll("tr.same")) row.hidden = !target.checked;
  });
  const place = page.querySelector("[data-charts]");
  if (!place) return;
  await loadCharts();
  const runs = [...page.querySelectorAll("[data-run]")].map((element, index) => ({
    id: element.dataset.run, label: element.dataset.name, series: index + 1, loss: new Column(), evalLoss: new Column(),
  }));
  const group = new Group();
  const lines = (name) => runs.map(({ label, series, [name]: column }) => ({ label, series, column }));
  const charts = [
    new Chart(group, "Loss", lines("loss"), { smoothing: 0.6, tall: true, several: true, none: "No steps yet." }),
    new Chart(group, "Eval loss", lines("evalLoss"), { tall: true, several: true, none: "No evaluations yet." }),
  ];
  place.append(...charts.map((chart) => chart.figure));
  for (const run of runs) watch(run, later(() => charts.forEach((chart) => chart.draw())));
}

function watch(run, changed) {
  follow(`/streams/runs/${encodeURIComponent(run.id)}`, {
    onEvents(events) {
      for (const event of events) {
        if (event.type !== "training.log") continue;
        for (const name of ["loss", "evalLoss"]) {
          const value = numberOf(event, name);
          if (value !== undefined) run[name].push(event.step, value);
        }
      }
      changed();
    },
  });
}

let scheduled = false;
function later(action) {
  return () => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => requestAnimationFrame(() => {
      scheduled = false;
      action();
    }), 200);
  };
}
