// Before the first paint: the theme that was chosen here, so that nothing flashes. Without one, the system decides.
(() => {
  try {
    const chosen = localStorage.getItem("arkor.theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
  } catch { /* storage is forbidden: the system decides */ }
})();
