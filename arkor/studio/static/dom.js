// Helpers for elements and colours.

/** Resolve a colour variable of tokens.css for a canvas. */
export function colour(element, name) {
  const probe = element.ownerDocument.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

export const [LONG, TAIL] = [24, 12]; // characters, as in kit.html

/** Return a name as nodes; a long one is shortened in the middle where space is short. */
export function named(text) {
  if (text.length <= LONG) return [text];
  const ends = make("span", "ends");
  ends.append(make("span", "", text.slice(0, -TAIL)), make("span", "", text.slice(-TAIL)));
  return [ends];
}
