// One answer of a model, word by word, and what it took; and the weights that a picker has chosen, as a request names them.

import { headers } from "./session.js";

const BROKEN_OFF = "The answer broke off before its end. Ask again.";

/** Which weights: of a run `run` its final adapter (`step` ""), a checkpoint, or what it began with ("base"); else `model`. */
export function weightsOf({ run, step, model }) {
  if (!run || step === "base") return { baseModel: model };
  return { adapter: step ? { kind: "checkpoint", jobId: run, step: Number(step) } : { kind: "final", jobId: run } };
}

/**
 * Ask. `onText(text)` gets what comes. Resolves to `{ finish, usage, first, seconds }`: why it ended, the counts of tokens,
 * the seconds to the first word and from there to the end. Rejects with a sentence, or with an AbortError after `signal`.
 */
export async function ask(body, { onText, signal }) {
  const began = performance.now();
  const answer = await send("/streams/answers", body, signal);
  const told = { finish: null, usage: null, first: null, seconds: 0 };
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await next(reader);
    if (done) break;
    const frames = (rest + value).split(/\r?\n\r?\n/);
    rest = frames.pop();
    for (const frame of frames) take(frame, told, (text) => {
      told.first ??= (performance.now() - began) / 1000;
      onText(text);
    });
    told.seconds = (performance.now() - began) / 1000 - (told.first ?? 0);
  }
  if (!told.finish) throw new Error(BROKEN_OFF);
  return told;
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(BROKEN_OFF); // the network has gone
  }
}

function take(frame, told, onText) {
  const data = frame.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n").trim();
  if (!data || data === "[DONE]") return;
  const chunk = parse(data);
  if (chunk.error) throw new Error(sentence(chunk.error.message ?? String(chunk.error)));
  told.usage = chunk.usage ?? told.usage;
  for (const { delta, finish_reason: finish } of chunk.choices ?? []) {
    told.finish = finish ?? told.finish;
    if (delta?.content) onText(delta.content);
  }
}

function parse(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    return {}; // a newer backend may say what we do not understand
  }
}

/** Post JSON to Studio; rejects with the sentence of an error. */
export async function send(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", body: JSON.stringify(body), signal, headers: headers({ "Content-Type": "application/json" }),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    document.dispatchEvent(new CustomEvent("studio:disconnected"));
    throw new Error("Studio cannot be reached. Once it is back, ask again.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("studio:locked"));
  throw new Error(sentence(plain(await answer.text())));
}

function plain(text) {
  if (!text.trimStart().startsWith("<")) return text || "Studio has not said why.";
  return new DOMParser().parseFromString(text, "text/html").body.textContent.trim().replace(/\s+/g, " ");
}

export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** What an answer took, for a person. */
export function costs({ usage, first, seconds, finish }) {
  const said = [];
  if (usage) {
    said.push(`${usage.completion_tokens} token${usage.completion_tokens === 1 ? "" : "s"}`);
    if (usage.completion_tokens > 1 && seconds > 0.001) said.push(`${rate((usage.completion_tokens - 1) / seconds)} tokens/s`);
  }
  if (first !== null) said.push(`first after ${first < 10 ? first.toFixed(2) : Math.round(first)} s`);
  if (usage) said.push(`${usage.prompt_tokens} in the prompt`);
  if (finish === "length") said.push("cut off at max tokens");
  return said.join(" · ");
}

function rate(value) {
  return value >= 100 ? Math.round(value) : value.toPrecision(2);
}
