// The list of runs: the number of each status, and the runs selected for a comparison, which stay selected on other pages
// and in other searches.

export function mount(page) {
  const picked = new Set();
  const bar = page.querySelector("#picked");

  const show = () => {
    bar.hidden = picked.size === 0;
    bar.querySelector("[data-picked-count]").textContent = picked.size;
    const compare = bar.querySelector("[data-picked-compare]");
    compare.classList.toggle("off", picked.size < 2);
    if (picked.size > 1) compare.href = `/compare?${[...picked].map((id) => `run=${encodeURIComponent(id)}`).join("&")}`;
    else compare.removeAttribute("href");
  };
  const arrived = () => {
    const { by } = page.querySelector("#list").dataset;
    if (by) page.querySelector("[name=by]").value = by; // the user may have clicked the head of a column
    for (const box of page.querySelectorAll("[data-pick]")) box.checked = picked.has(box.dataset.pick);
    for (const { dataset, attributes } of page.querySelectorAll("[data-counted]"))
      page.querySelector(`[data-count="${dataset.counted}"]`).textContent = attributes.value.value;
  };

  page.addEventListener("change", ({ target }) => {
    if (target.dataset.pick === undefined) return;
    if (target.checked) picked.add(target.dataset.pick);
    else picked.delete(target.dataset.pick);
    show();
  });
  page.querySelector("[data-picked-clear]").addEventListener("click", () => {
    picked.clear();
    show();
    arrived();
  });
  page.addEventListener("htmx:afterSwap", arrived);
  page.querySelector("#filter").addEventListener("submit", (event) => event.preventDefault());
  arrived();
}
