// The playground: conversations with one model, or with two that get the same messages. Stop also ends the computation in
// the backend. Text is shown as text, never as markup, and is stored only in this tab.

import { ask, costs, send, sentence, weightsOf } from "./answer.js";
import { forget, keep, kept } from "./kept.js";
import { keepSettings, settingsOf, showConstraint } from "./sampling.js";

const PATIENCE_MS = 4000;

export function mount(page) {
  new Playground(page);
}

class Playground {
  constructor(page) {
    this.page = page;
    this.settings = this.find("settings");
    this.prompt = page.querySelector("#prompt");
    this.talks = [...page.querySelectorAll("[data-talk]")].map((element) => new Talk(element, this));
    this.find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      this.find("composer").requestSubmit();
    });
    this.find("stop").addEventListener("click", () => this.stop());
    this.find("again").addEventListener("click", () => this.again());
    this.find("clear").addEventListener("click", () => this.clear());
    this.find("double").addEventListener("click", () => this.double(true));
    this.find("single").addEventListener("click", () => this.double(false));
    this.recall();
    page.addEventListener("picked", () => this.keepPlace());
    addEventListener("pagehide", () => page.isConnected && this.keep());
    page.addEventListener("click", ({ target }) => target.closest("[data-close]")?.closest("dialog").close());
    keepSettings(this.settings);
    this.settings.addEventListener("input", () => this.complain(""));
    showConstraint(this.settings);
    this.grow();
    this.prompt.addEventListener("input", () => this.grow());
    this.prompt.focus({ preventScroll: true });
    page.dataset.ready = "";
  }

  find(name) {
    return this.page.querySelector(`[data-${name}]`);
  }

  get shown() {
    return this.talks.filter((talk) => !talk.element.hidden);
  }

  grow() {
    this.prompt.rows = Math.min(10, Math.max(2, this.prompt.value.split("\n").length));
  }

  /** The settings of a request; null, with a message next to the form, if one is invalid. */
  checked() {
    try {
      return settingsOf(this.settings);
    } catch (error) {
      this.complain(error.message);
      error.field?.focus();
      return null;
    }
  }

  complain(text) {
    this.find("problem").textContent = text;
  }

  send() {
    const text = this.prompt.value;
    const settings = this.checked();
    if (!text.trim() || !settings || this.busy) return;
    if (this.shown.some((talk) => !talk.chosen)) return this.complain("Choose a model first.");
    this.prompt.value = "";
    this.grow();
    this.each((talk) => talk.ask(text, settings));
  }

  again() {
    const settings = this.checked();
    if (settings && !this.busy) this.each((talk) => talk.again(settings));
  }

  async each(action) {
    this.busy = true;
    this.show();
    await Promise.all(this.shown.map(action));
    this.busy = false;
    this.keep();
    this.show();
    if (document.activeElement === document.body) this.prompt.focus();
  }

  stop() {
    for (const talk of this.talks) talk.stop();
  }

  clear() {
    this.stop();
    for (const talk of this.talks) talk.clear();
    forget();
    this.show();
    this.prompt.focus();
  }

  show() {
    const asked = this.shown.some((talk) => talk.turns.length);
    this.find("send").hidden = this.busy;
    this.find("stop").hidden = !this.busy;
    this.find("again").hidden = this.busy || !asked;
    this.find("clear").disabled = !asked;
  }

  /** Restore the conversation of this tab if the URL names the same models, or none. */
  recall() {
    const found = kept(this.page.dataset.project);
    if (!found || (location.search && !isSame(location.search, found.place))) return;
    found.talks.forEach((record, index) => this.talks[index]?.recall(record, !location.search));
    this.find("double").hidden = this.shown.length > 1;
    this.show();
  }

  keep() {
    if (this.shown.some((talk) => talk.turns.length))
      keep(this.page.dataset.project, location.search, this.shown.map((talk) => talk.record));
  }

  double(two) {
    const [first, second] = this.talks;
    second.element.hidden = !two;
    this.find("double").hidden = two;
    if (two && !second.chosen) second.beLike(first);
    if (!two) second.stop();
    this.keepPlace();
    if (two) second.element.querySelector("[data-open]").focus();
    else this.find("double").focus();
  }

  /** Put the chosen models in the URL, so that it can be bookmarked. */
  keepPlace() {
    const place = new URLSearchParams();
    this.shown.forEach(({ picked: { run, step, model, held } }, index) => {
      const suffix = index ? "2" : "";
      if (run) place.set(`run${suffix}`, run);
      else if (model) place.set(`model${suffix}`, model);
      if (run && step && held) place.set(`step${suffix}`, step);
    });
    const query = place.size ? `?${place}` : "";
    history.replaceState(history.state, "", location.pathname + query);
  }

  async showCode(talk) {
    const dialog = this.page.querySelector("#code");
    const content = this.find("code-content");
    const settings = this.checked();
    if (!settings || !talk.chosen) return;
    dialog.showModal();
    try {
      const draft = this.prompt.value.trim() || (talk.turns.length ? "" : "Hello!");
      const answer = await send("/parts/code", talk.request(draft, settings));
      content.innerHTML = await answer.text(); // rendered by Studio, which escapes every value
    } catch (error) {
      content.textContent = error.message;
    }
  }
}

/** A conversation with one model: turns of a message and its answer. */
class Talk {
  constructor(element, playground) {
    this.element = element;
    this.picked = element.querySelector(".picker").dataset;
    this.log = element.querySelector("[data-log]");
    this.turns = [];
    element.querySelector("[data-code]").addEventListener("click", () => playground.showCode(this));
  }

  get chosen() {
    return Boolean(this.picked.run || this.picked.model);
  }

  beLike(other) {
    const { run, name, model, status } = other.picked;
    Object.assign(this.picked, { run, name, model, status, step: "base" });
    this.element.querySelector(".picker").dispatchEvent(new CustomEvent("begin"));
  }

  get record() {
    const { run, name, model, status, step } = this.picked;
    return { picked: { run, name, model, status, step }, turns: this.turns.map((turn) => turn.record) };
  }

  /** Show a stored conversation; `choose`: select its model too. */
  recall({ picked, turns }, choose) {
    this.element.hidden = false;
    if (choose) Object.assign(this.picked, picked);
    if (choose) this.element.querySelector(".picker").dispatchEvent(new CustomEvent("begin"));
    this.turns = turns.map((turn) => Turn.of(turn));
    this.log.append(...this.turns.map((turn) => turn.element));
    this.element.querySelector("[data-empty]").hidden = turns.length > 0;
    this.toTheEnd();
  }

  /** The request for an answer to `text`, or to the last message if it is empty; without failed turns. */
  request(text, settings) {
    const { system, ...rest } = settings;
    const messages = system ? [{ role: "system", content: system }] : [];
    const turns = text ? this.turns : this.turns.slice(0, -1);
    for (const turn of turns.filter((one) => one.text))
      messages.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.text });
    messages.push({ role: "user", content: text || this.turns.at(-1).question });
    return { ...weightsOf(this.picked), messages, ...rest };
  }

  again(settings) {
    const last = this.turns.pop();
    if (!last) return undefined;
    last.element.remove();
    return this.ask(last.question, settings);
  }

  async ask(question, settings) {
    this.element.querySelector(".picker").dispatchEvent(new CustomEvent("hold"));
    const body = this.request(question, settings);
    const turn = new Turn(question);
    this.turns.push(turn);
    this.element.querySelector("[data-empty]").hidden = true;
    this.log.append(turn.element);
    this.toTheEnd();
    this.abort = new AbortController();
    try {
      const told = await ask(body, { signal: this.abort.signal, onText: (text) => this.following(() => turn.add(text)) });
      this.following(() => turn.end("done", costs(told)));
    } catch (error) {
      const stopped = error.name === "AbortError";
      this.following(() => turn.end(stopped ? "stopped" : "failed", stopped ? "Stopped." : sentence(error.message)));
    }
  }

  /** Apply a change; keep the end visible unless the user has scrolled back. */
  following(change) {
    const near = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
    change();
    if (near) this.toTheEnd();
  }

  toTheEnd() {
    this.log.scrollTop = this.log.scrollHeight;
  }

  stop() {
    this.abort?.abort();
  }

  clear() {
    for (const turn of this.turns) turn.element.remove();
    this.turns = [];
    this.element.querySelector("[data-empty]").hidden = false;
  }
}

class Turn {
  constructor(question) {
    Object.assign(this, { question, text: "" });
    this.element = part("article", "turn");
    const asked = part("p", "asked", question);
    this.said = part("p", "said", "");
    this.note = part("p", "note muted small", "");
    this.element.dataset.state = "busy";
    this.element.setAttribute("aria-busy", "true"); // screen readers wait for the whole answer
    this.element.append(asked, this.said, this.note);
    this.patience = setTimeout(() => {
      if (!this.text) this.note.textContent = "Loading the model; this happens at its first use.";
    }, PATIENCE_MS);
  }

  /** Restore a stored turn. */
  static of({ question, text, state, note }) {
    const turn = new Turn(question);
    if (text) turn.add(text);
    turn.end(state, note);
    return turn;
  }

  /** The data to store; an unfinished answer counts as stopped. */
  get record() {
    const { question, text, said, note, element } = this;
    const [busy, failed] = ["busy", "failed"].map((state) => element.dataset.state === state);
    return {
      question,
      text: failed && said.isConnected ? said.textContent : text, // a failed answer is shown, but not sent again
      state: busy ? "stopped" : element.dataset.state,
      note: busy ? "Stopped because the page was closed." : note.textContent,
    };
  }

  add(text) {
    if (!this.text) this.note.textContent = "";
    this.text += text;
    this.said.firstChild.appendData(text);
  }

  end(state, note) {
    clearTimeout(this.patience);
    this.element.dataset.state = state;
    this.element.removeAttribute("aria-busy");
    this.note.textContent = note;
    this.note.classList.toggle("problem-note", state === "failed");
    if (state === "failed") this.note.setAttribute("role", "alert");
    if (!this.text && state === "done") this.said.firstChild.appendData("(empty answer)");
    if (!this.text && state !== "done") this.said.remove();
    if (state === "failed") this.text = "";
  }
}

/** True if two queries name the same models. */
function isSame(one, other) {
  const [mine, theirs] = [one, other].map((query) => new URLSearchParams(query));
  mine.sort();
  theirs.sort();
  return String(mine) === String(theirs);
}

function part(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  if (text !== undefined) element.append(document.createTextNode(text));
  return element;
}
