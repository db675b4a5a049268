// The events of a run, each once and in order, across lost connections, suspended machines and restarts of Studio or the
// backend. A stream is read with fetch, which can send the token in a header, and resumes after the id of the last event.
// A hidden page holds no connection, but may poll; and only a few streams hold one at a time, because browsers open at
// most six connections to a host.

import { headers } from "./session.js";

const SILENCE_MS = 40_000; // the backend pings every 15 s
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS, POLL_MS, HIDDEN_MS, AWAY_MS] = [500, 10_000, 2000, 5000, 10_000];
const SLOTS = 3;

/**
 * Follow the stream at `path`. `onEvents(events)` receives events in batches; `onState(state)` receives "live", "waiting"
 * (before a reconnect) or "over". `evenAway`: poll every ten seconds while the page is hidden. Returns a function that
 * stops following.
 */
export function follow(path, { onEvents, onState = () => {}, evenAway = false }) {
  const follower = new Follower(path, onEvents, onState, evenAway);
  follower.run();
  return () => follower.leave();
}

class Follower {
  constructor(path, onEvents, onState, evenAway) {
    Object.assign(this, { path, onEvents, onState, evenAway, cursor: null, left: false, over: false, pause: FIRST_PAUSE_MS });
    this.woken = () => {};
    this.onVisible = () => (document.hidden ? this.hide() : this.wake());
    document.addEventListener("visibilitychange", this.onVisible);
    addEventListener("online", this.onVisible);
    addEventListener("pagehide", () => this.connection?.abort());
    addEventListener("pageshow", (event) => event.persisted && this.wake());
  }

  leave() {
    this.left = true;
    document.removeEventListener("visibilitychange", this.onVisible);
    removeEventListener("online", this.onVisible);
    this.connection?.abort();
    this.wake();
  }

  hide() {
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => document.hidden && this.connection?.abort(), HIDDEN_MS);
  }

  wake() {
    clearTimeout(this.hiding);
    this.woken();
  }

  async run() {
    while (!this.left && !this.over) {
      const polite = await withSlot((free) => this.connect(!free || document.hidden));
      if (this.over || this.left) break;
      if (document.hidden) await this.sleep(this.evenAway ? AWAY_MS : null);
      else if (polite) await this.sleep(POLL_MS);
      else {
        await this.sleep(this.pause);
        this.pause = Math.min(this.pause * 2, LONGEST_PAUSE_MS);
      }
    }
    if (this.over) this.onState("over");
  }

  sleep(ms) {
    return new Promise((resolve) => {
      this.woken = resolve;
      if (ms !== null) setTimeout(resolve, ms);
    });
  }

  /** Open one connection. True if it was a `short` one and has ended as intended. */
  async connect(short) {
    this.connection = new AbortController();
    const watchdog = new Watchdog(() => this.connection.abort());
    try {
      const more = this.cursor === null ? {} : { "Last-Event-ID": this.cursor };
      const url = short ? `${this.path}?once` : this.path;
      const answer = await fetch(url, { headers: headers(more), signal: this.connection.signal });
      if (answer.status === 401) return this.locked();
      if (!answer.ok) throw new Error(await answer.text());
      this.onState("live");
      await this.read(answer.body, watchdog);
      return short;
    } catch (error) {
      if (!this.left && !document.hidden) this.lost(error);
      return false;
    } finally {
      watchdog.stop();
    }
  }

  locked() {
    this.left = true;
    document.dispatchEvent(new CustomEvent("studio:locked"));
  }

  lost(error) {
    if (error instanceof TypeError) document.dispatchEvent(new CustomEvent("studio:disconnected"));
    this.onState("waiting", error instanceof TypeError ? "" : error.message);
  }

  async read(body, watchdog) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      watchdog.heard();
      this.pause = FIRST_PAUSE_MS;
      rest += value;
      const end = rest.lastIndexOf("\n\n"); // an incomplete frame waits for its end
      if (end < 0) continue;
      this.take(rest.slice(0, end));
      rest = rest.slice(end + 2);
    }
  }

  take(text) {
    const events = [];
    for (const frame of text.split("\n\n")) {
      const event = this.parse(frame);
      if (event) events.push(event);
    }
    if (events.length) this.onEvents(events);
  }

  parse(frame) {
    const fields = {};
    for (const line of frame.split("\n")) {
      const colon = line.indexOf(":");
      if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, "");
    }
    if (fields.id !== undefined) this.cursor = fields.id;
    if (fields.event === "end") this.over = true;
    if (!fields.data || fields.event === "ping" || fields.event === "end") return null;
    try {
      return JSON.parse(fields.data);
    } catch {
      return null; // an unknown event of a newer backend
    }
  }
}

class Watchdog {
  constructor(bark) {
    this.heard = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(bark, SILENCE_MS);
    };
    this.heard();
  }

  stop() {
    clearTimeout(this.timer);
  }
}

/** Call with true while holding one of the few connection slots of streams, else with false. */
async function withSlot(call) {
  if (!navigator.locks) return call(true);
  for (let slot = 0; slot < SLOTS; slot += 1) {
    let result;
    const taken = await navigator.locks.request(`arkor-stream-${slot}`, { ifAvailable: true }, async (lock) => {
      if (lock) result = await call(true);
      return lock !== null;
    });
    if (taken) return result;
  }
  return call(false);
}
