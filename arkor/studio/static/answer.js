// Requests to a model: the model of a picker, a streamed answer, and its statistics.

import { headers } from "./session.js";

const BROKEN_OFF = "The answer was interrupted. Try again.";

/** The model fields of a request: the final adapter of `run` (`step` ""), a checkpoint, or the base model ("base"). */
export function weightsOf({ run, step, model }) {
  if (!run || step === "base") return { baseModel: model };
  return { adapter: step ? { kind: "checkpoint", jobId: run, step: Number(step) } : { kind: "final", jobId: run } };
}

/**
 * Send a request and pass the text to `onText` as it arrives. Resolves to `{ finish, usage, first, seconds }`: the finish
 * reason, the token counts, the seconds to the first text and from there to the end. Rejects with an Error whose message
 * is shown to the user, or with an AbortError after `signal`.
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
    throw error.name === "AbortError" ? error : new Error(BROKEN_OFF); // the connection is lost
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
    return {}; // an unknown frame of a newer backend
  }
}

/** Post JSON to Studio; rejects with the message of the error. */
export async function send(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", body: JSON.stringify(body), signal, headers: headers({ "Content-Type": "application/json" }),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    document.dispatchEvent(new CustomEvent("studio:disconnected"));
    throw new Error("Studio cannot be reached. Start it again and retry.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("studio:locked"));
  throw new Error(sentence(plain(await answer.text())));
}

function plain(text) {
  if (!text.trimStart().startsWith("<")) return text || "Studio returned an error without a message.";
  return new DOMParser().parseFromString(text, "text/html").body.textContent.trim().replace(/\s+/g, " ");
}

export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Format the statistics of an answer. */
export function costs({ usage, first, seconds, finish }) {
  const said = [];
  if (usage) {
    said.push(`${usage.completion_tokens} token${usage.completion_tokens === 1 ? "" : "s"}`);
    if (usage.completion_tokens > 1 && seconds > 0.001) said.push(`${rate((usage.completion_tokens - 1) / seconds)} tokens/s`);
  }
  if (first !== null) said.push(`first token after ${first < 10 ? first.toFixed(2) : Math.round(first)} s`);
  if (usage) said.push(`${usage.prompt_tokens} prompt tokens`);
  if (finish === "length") said.push("stopped at max tokens");
  return said.join(" · ");
}

function rate(value) {
  return value >= 100 ? Math.round(value) : value.toPrecision(2);
}
