// The output of a run's process, streamed; after a lost connection it resumes where it was.

import { headers } from "./session.js";

const LONGEST = 400_000; // characters; the rest is in the file
const ESCAPES = /\u001b\[[0-9;?]*[A-Za-z]/g;
const PAUSE_MS = 1500;

export async function mount(card) {
  const screen = card.querySelector(".console");
  const state = card.querySelector("#launch-state");
  let from = 0;
  while (card.isConnected) {
    try {
      const answer = await fetch(`${card.dataset.stream}?from=${from}`, { headers: headers() });
      if (!answer.ok) return;
      await read(answer.body, (bytes) => { from += bytes.length; }, (text) => print(screen, text));
      state.removeAttribute("data-every");
      htmx.trigger(state, "refresh");
      return;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
}

async function read(body, count, write) {
  const [reader, decoder] = [body.getReader(), new TextDecoder()];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    count(value);
    write(decoder.decode(value, { stream: true }));
  }
}

function print(screen, text) {
  const atEnd = screen.scrollTop + screen.clientHeight >= screen.scrollHeight - 8;
  screen.append(text.replace(ESCAPES, "").replace(/[^\n]*\r(?!\n)/g, ""));
  if (screen.textContent.length > LONGEST) screen.textContent = screen.textContent.slice(-LONGEST / 2);
  if (atEnd) screen.scrollTop = screen.scrollHeight;
}
