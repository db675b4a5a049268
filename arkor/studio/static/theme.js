// Apply the chosen theme before the first paint, to avoid a flash. The default is the system's.
(() => {
  try {
    const chosen = localStorage.getItem("arkor.theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
  } catch { /* storage is forbidden: the system decides */ }
})();
