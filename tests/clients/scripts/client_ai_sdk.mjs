// The Vercel AI SDK: its default (responses), chat, text completions, tools, structured output, streams.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { OPENAI_BASE_URL: baseURL, OPENAI_API_KEY: apiKey, MODEL } = process.env;
const SYSTEM = "Sort the support ticket. Answer with JSON: category and urgency.";
const TICKET = "My parcel was meant to come on Friday and the tracking page hasn't changed since.";
const PROMPT = `<|im_start|>system\n${SYSTEM}<|im_end|>\n<|im_start|>user\n${TICKET}<|im_end|>\n<|im_start|>assistant\n`;
const asked = { instructions: SYSTEM, prompt: TICKET, maxRetries: 0, temperature: 0 };

async function call(name, run) {
  try {
    console.log(`ok\t${name}\t${String((await run()) ?? "").replace(/\s+/g, " ").slice(0, 160)}`);
  } catch (error) {
    console.log(`FAILED\t${name}\t${error.name}: ${String(error.message).replace(/\s+/g, " ").slice(0, 300)}`);
    if (process.argv.includes("-v")) console.error(error);
  }
}

function triage(text) {
  if (JSON.parse(text).category !== "delivery") throw new Error(text);
  return text;
}

const balance = tool({
  description: "The balance of an account.",
  inputSchema: z.object({ account: z.string() }),
  execute: async ({ account }) => `${account}: 12 euro`,
});
const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: "arkor", baseURL, apiKey, supportsStructuredOutputs: true });
const models = { responses: openai(MODEL), chat: openai.chat(MODEL), compatible: compatible(MODEL) };

for (const [kind, model] of Object.entries(models)) {
  await call(`${kind}: generateText`, async () => triage((await generateText({ ...asked, model })).text));
  await call(`${kind}: streamText`, async () => triage(await streamText({ ...asked, model }).text));
  await call(`${kind}: Output.object`, async () => {
    const schema = z.object({ category: z.string(), urgency: z.enum(["normal", "high"]) });
    const { output } = await generateText({ ...asked, model, output: Output.object({ schema }) });
    return triage(JSON.stringify(output));
  });
  await call(`${kind}: a required call, then its result`, async () => {
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" });
    const result = await generateText({ ...asked, model, tools: { balance }, prepareStep, stopWhen: stepCountIs(2) });
    if (result.steps.length !== 2) throw new Error(`${result.steps.length} steps`);
    return result.text;
  });
}
await call("text: generateText", async () => {
  const model = openai.completion(MODEL);
  return (await generateText({ model, prompt: TICKET, maxOutputTokens: 30, maxRetries: 0 })).text;
});
await call("compatible text: streamText", async () => {
  const model = compatible.completionModel(MODEL);
  return await streamText({ model, prompt: PROMPT, maxOutputTokens: 30, maxRetries: 0 }).text;
});
