// The token of this launch: it comes in the fragment of the first URL, is stored where only this origin can read it, and
// is sent in a header. It is in no URL that a server receives or the history stores.

const KEY = "arkor.studio.token";
export const HEADER = "X-Arkor-Studio-Token";

let kept = null; // if storage is forbidden, while this page is open

/** Return the token in a URL or in pasted text, or null. */
export function tokenIn(text) {
  const found = /#?token=([\w-]+)/.exec(text) ?? /^([\w-]{30,})$/.exec(text.trim());
  return found ? found[1] : null;
}

export function token() {
  try {
    return localStorage.getItem(KEY) ?? kept;
  } catch {
    return kept;
  }
}

export function keepToken(value) {
  kept = value;
  try {
    if (value) localStorage.setItem(KEY, value);
    else localStorage.removeItem(KEY);
  } catch { /* storage is forbidden: for this page only */ }
}

export function headers(more = {}) {
  return { [HEADER]: token() ?? "", ...more };
}

/** Move the token from the URL of this page to the storage. */
export function takeTokenFromAddress() {
  const found = tokenIn(location.hash);
  if (!found) return;
  keepToken(found);
  history.replaceState(history.state, "", location.pathname + location.search);
}
