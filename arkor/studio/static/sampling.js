// Convert the playground's settings to the fields of a request, with an error message for an invalid field.

const KEPT = "arkor.playground.settings";
const [LARGEST_EXACT, MOST_STOPS] = [Number.MAX_SAFE_INTEGER, 4];

const FORMS = {
  json: ["JSON schema", '{\n  "type": "object",\n  "properties": {\n    "topic": { "enum": ["card", "login"] },\n    "urgent": { "type": "boolean" }\n  },\n  "required": ["topic", "urgent"]\n}'],
  choice: ["Choices, one per line", "yes\nno"],
  regex: ["Pattern of the whole answer", "[A-Z][a-z]+, [0-9]{4}"],
  grammar: ["Grammar (Lark or GBNF)", 'start: "yes" | "no"'],
};

class Problem extends Error {
  constructor(field, sentence) {
    super(sentence);
    this.field = field;
  }
}

/** The fields of a request, and `system`. Throws a `Problem` with the field and a message. */
export function settingsOf(form) {
  const { temperature, topP, maxTokens, seed, stop, system } = form.elements;
  const stops = stop.value.split("\n").filter(Boolean);
  if (stops.length > MOST_STOPS) throw new Problem(stop, `Stop strings: at most ${MOST_STOPS}, not ${stops.length}.`);
  const found = {
    system: system.value.trim() ? system.value : undefined,
    temperature: number(temperature, "Temperature", 0, 100),
    topP: number(topP, "Top-p", 0, 1),
    maxTokens: number(maxTokens, "Max tokens", 1, 2 ** 31 - 1, true),
    seed: number(seed, "Seed", -LARGEST_EXACT, LARGEST_EXACT, true),
    stop: stops.length ? stops : undefined,
    structuredOutputs: constraintOf(form),
  };
  if (found.topP === 0) throw new Problem(topP, "Top-p must be above 0.");
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}

function number(field, name, least, most, whole = false) {
  if (field.value === "" && !field.validity.badInput) return undefined;
  const value = Number(field.value);
  const fits = field.value !== "" && value >= least && value <= most && (!whole || Number.isInteger(value));
  if (!fits) throw new Problem(field, `${name} must be a ${whole ? "whole " : ""}number from ${least} to ${most}.`);
  return value;
}

/** The constraint on the answer; undefined for any text. */
export function constraintOf(form) {
  const { form: kind, constraint } = form.elements;
  const text = constraint.value;
  if (!kind.value) return undefined;
  if (!text.trim()) throw new Problem(constraint, `${FORMS[kind.value][0]}: this field is empty.`);
  if (kind.value === "json") return { json: schemaOf(constraint) };
  if (kind.value === "choice") return { choice: text.split("\n").map((line) => line.trim()).filter(Boolean) };
  return { [kind.value]: text };
}

function schemaOf(field) {
  let schema;
  try {
    schema = JSON.parse(field.value);
  } catch (error) {
    throw new Problem(field, `The schema is not valid JSON: ${error.message}.`);
  }
  if (typeof schema !== "object" || schema === null || Array.isArray(schema))
    throw new Problem(field, 'The schema must be an object, like {"type": "object", …}.');
  return schema;
}

/** Show the field of the chosen constraint, with an example in it, and an error message after a change. */
export function showConstraint(form) {
  const { form: kind, constraint } = form.elements;
  const box = form.querySelector("[data-constraint]");
  const problem = form.querySelector("[data-problem]");
  const show = () => {
    box.hidden = !kind.value;
    if (!kind.value) return;
    const [label, example] = FORMS[kind.value];
    box.querySelector("[data-constraint-label]").textContent = label;
    if (!constraint.value.trim() || Object.values(FORMS).some(([, other]) => other === constraint.value)) constraint.value = example;
  };
  kind.addEventListener("change", show);
  constraint.addEventListener("change", () => {
    try {
      constraintOf(form);
    } catch (error) {
      problem.textContent = error.message;
    }
  });
  form.addEventListener("reset", () => setTimeout(() => {
    show();
    problem.textContent = "";
    sessionStorage.removeItem(KEPT);
  }));
  show();
}

/** A setting stored in this tab; "" if it is not set. */
export function keptSetting(name) {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT))?.[name] ?? "";
  } catch {
    return "";
  }
}

/** Store the settings in this tab until they are reset. */
export function keepSettings(form) {
  try {
    for (const [name, value] of Object.entries(JSON.parse(sessionStorage.getItem(KEPT)) ?? {}))
      if (form.elements[name]) form.elements[name].value = value;
    form.addEventListener("input", () => sessionStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(new FormData(form)))));
  } catch { /* storage is forbidden: for this page only */ }
}
