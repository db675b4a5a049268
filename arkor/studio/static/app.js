// Behaviour of every page: the token on each request, loading the content of the current URL, refreshing parts,
// confirmations, notifications, and the banner while Studio cannot be reached.

import { HEADER, headers, keepToken, takeTokenFromAddress, token, tokenIn } from "./session.js";
import { tick } from "./time.js";

const main = document.getElementById("main");
const banner = document.getElementById("disconnected");
const RECHECK_MS = 2000;

/* Requests of htmx */

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers[HEADER] = token() ?? "";
});
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) lock();
});
document.addEventListener("htmx:sendError", disconnected);
document.addEventListener("htmx:afterRequest", (event) => {
  const { successful, elt, requestConfig } = event.detail;
  if (successful) connected();
  if (requestConfig.verb !== "get") refreshAround(elt); // refreshes were suppressed during the request
});

// An unchanged part is not swapped, which keeps focus, selection and scroll position.
const shown = new WeakMap();
document.addEventListener("htmx:beforeSwap", (event) => {
  const { target, xhr, requestConfig } = event.detail;
  const refreshing = requestConfig.triggeringEvent?.type === "refresh";
  if (refreshing && (shown.get(target) === xhr.responseText || isBusy(target))) event.detail.shouldSwap = false;
  else shown.set(target, xhr.responseText);
});
document.addEventListener("htmx:afterSwap", (event) => {
  const { elt, xhr } = event.detail;
  shown.set(elt, xhr.responseText); // an outer swap has replaced the element
  furnish(elt);
});

// A part is not replaced while the user interacts with it, or while a confirmation or a request of it is open.
let asked = null;
function isBusy(part) {
  return part.contains(asked) || Boolean(part.querySelector("button:active, a:active, select:focus, .htmx-request"));
}

function refreshAround(element) {
  const part = element.closest('[hx-trigger~="refresh"]');
  if (part) htmx.trigger(part, "refresh");
}

// Enter that ends the composition of an input method (Japanese, Chinese, …) must not send anything. Safari ends the
// composition before this event, which then has only the old code of such keys.
const COMPOSING_KEY_CODE = 229;
for (const type of ["keydown", "keyup"]) {
  document.addEventListener(
    type,
    (event) => {
      if (event.key === "Enter" && (event.isComposing || event.keyCode === COMPOSING_KEY_CODE)) event.stopPropagation();
    },
    { capture: true },
  );
}

/* Parts that are refreshed every few seconds while the page is visible */

const due = new WeakMap();
setInterval(() => {
  tick(document);
  if (document.hidden || !banner.hidden) return;
  for (const part of document.querySelectorAll("[data-every]")) {
    const now = performance.now();
    if (now < (due.get(part) ?? now + 1)) continue;
    due.set(part, now + Number(part.dataset.every) * 1000 - 50);
    htmx.trigger(part, "refresh");
  }
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) for (const part of document.querySelectorAll("[data-every]")) htmx.trigger(part, "refresh");
});

// After an error in the entry point, read it again when the user returns from the editor.
addEventListener("focus", () => {
  const trainer = document.getElementById("trainer");
  if (trainer?.querySelector('[data-kind="fault"]')) htmx.trigger(trainer, "look");
});

/* Initialising new content */

function furnish(root) {
  for (const part of root.querySelectorAll("[data-every]")) due.set(part, performance.now() + Number(part.dataset.every) * 1000);
  if (root.dataset?.every) due.set(root, performance.now() + Number(root.dataset.every) * 1000);
  const found = [...root.querySelectorAll("[data-module]")];
  if (root.dataset?.module) found.push(root);
  for (const element of found) {
    if (element.dataset.mounted) continue;
    element.dataset.mounted = "1";
    mount(element);
  }
  tick(root);
}

// Inert until its module is loaded, because clicks would be lost.
async function mount(element) {
  element.inert = true;
  const module = await import(`./${element.dataset.module}.js`).finally(() => (element.inert = false));
  module.mount(element);
}

/* Loading the content of the current URL */

async function open() {
  markPlace();
  if (!token()) return lock();
  main.setAttribute("aria-busy", "true");
  await htmx.ajax("GET", location.pathname + location.search, { target: main, swap: "innerHTML" });
  main.removeAttribute("aria-busy");
  const title = main.querySelector("[data-title]")?.dataset.title;
  if (title) document.title = `${title} · Arkor Studio`;
  const identity = document.getElementById("identity");
  htmx.ajax("GET", identity.dataset.part, { target: identity, swap: "innerHTML" }).catch(() => {});
}

function markPlace() {
  const here = location.pathname;
  for (const link of document.querySelectorAll(".side nav a")) {
    const there = link.getAttribute("href");
    const inside = there === "/" ? here === "/" : here.startsWith(there) || (there === "/runs" && here === "/compare");
    if (inside) link.setAttribute("aria-current", here === there ? "page" : "true");
  }
}

function lock() {
  keepToken(null);
  main.removeAttribute("aria-busy");
  main.replaceChildren(document.getElementById("locked").content.cloneNode(true));
  document.title = "Locked · Arkor Studio";
  document.getElementById("unlock").addEventListener("submit", unlock);
}

async function unlock(event) {
  event.preventDefault();
  const given = tokenIn(document.getElementById("unlock-token").value);
  const answer = given && (await fetch("/parts/ready", { headers: { [HEADER]: given } }).catch(() => null));
  if (!answer?.ok) {
    document.getElementById("unlock-error").textContent = "That is not the token of this launch.";
    return;
  }
  keepToken(given);
  open();
}

/* While Studio cannot be reached */

let checking = null;
function disconnected() {
  banner.hidden = false;
  checking ??= setInterval(async () => {
    const answer = await fetch("/parts/ready", { headers: headers() }).catch(() => null);
    if (answer) connected();
    if (answer && main.querySelector(".skeleton-page")) open();
    if (answer?.status === 401) lock();
  }, RECHECK_MS);
}
function connected() {
  banner.hidden = true;
  clearInterval(checking);
  checking = null;
}
document.addEventListener("studio:disconnected", disconnected);
document.addEventListener("studio:locked", lock);

/* Confirmations */

const dialog = document.getElementById("confirm");
document.addEventListener("htmx:confirm", (event) => {
  const { confirm, confirmText, confirmYes } = event.detail.elt.dataset;
  if (!confirm) return;
  event.preventDefault();
  document.getElementById("confirm-title").textContent = confirm;
  document.getElementById("confirm-text").textContent = confirmText ?? "";
  document.getElementById("confirm-yes").textContent = confirmYes ?? "Yes";
  dialog.returnValue = "no";
  dialog.showModal();
  asked = event.detail.elt;
  dialog.addEventListener("close", () => {
    asked = null;
    if (dialog.returnValue === "yes") event.detail.issueRequest(true);
    else refreshAround(event.detail.elt);
  }, { once: true });
});

/* Small buttons */

document.addEventListener("click", async (event) => {
  const pressed = event.target.closest("button");
  if (!pressed) return;
  if (pressed.dataset.copy !== undefined) copy(pressed);
  if ("dismiss" in pressed.dataset) pressed.closest(".toast").remove();
  if ("reload" in pressed.dataset) open();
  if (pressed.id === "theme") changeTheme();
});

async function copy(button) {
  await navigator.clipboard.writeText(button.dataset.copy);
  button.classList.add("done");
  button.querySelector("use")?.setAttribute("href", "/static/icons.svg#check");
  setTimeout(() => {
    button.classList.remove("done");
    button.querySelector("use")?.setAttribute("href", "/static/icons.svg#copy");
  }, 1500);
}

function changeTheme() {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "dark"
    || (root.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("arkor.theme", root.dataset.theme);
  } catch { /* storage is forbidden: for this page only */ }
  document.dispatchEvent(new CustomEvent("studio:theme"));
}

// Notifications disappear after a few seconds, except errors.
new MutationObserver((changes) => {
  for (const { addedNodes } of changes)
    for (const node of addedNodes)
      if (node.dataset?.kind === "done") setTimeout(() => node.remove(), 6000);
}).observe(document.getElementById("toasts"), { childList: true });

takeTokenFromAddress();
addEventListener("hashchange", () => { takeTokenFromAddress(); open(); });
open();
