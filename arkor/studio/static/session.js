// The token of this launch: comes behind the # of the first address, is kept where only this origin can read it, and
// goes out in a header. It is in no address that a server sees or a history keeps.

const KEY = "arkor.studio.token";
export const HEADER = "X-Arkor-Studio-Token";

let kept = null; // where storage is forbidden, for as long as this page lives

/** Take the token out of an address, or out of what somebody has pasted. */
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
  } catch { /* kept for this page alone */ }
}

export function headers(more = {}) {
  return { [HEADER]: token() ?? "", ...more };
}

/** Move the token from the address of this page to where it is kept. */
export function takeTokenFromAddress() {
  const found = tokenIn(location.hash);
  if (!found) return;
  keepToken(found);
  history.replaceState(history.state, "", location.pathname + location.search);
}
