// The conversation of the playground, kept for as long as its tab: through a reload, and while other pages are looked at.
// Not for longer, and not where other tabs can read it: what was asked is nobody else's, and another program may listen at
// this address tomorrow.

const KEY = "arkor.playground.conversation";
const [MOST_TURNS, MOST_CHARACTERS] = [100, 300_000]; // of each model; of all that is kept

/** Keep it: `place` is the query of the address, `talks` are `{picked, turns}`, a turn `{question, text, note, state}`. */
export function keep(project, place, talks) {
  try {
    sessionStorage.setItem(KEY, fitting({ project, place, talks }));
  } catch { /* storage is full or forbidden: for this page alone */ }
}

/** What was kept of a project; null for nothing. */
export function kept(project) {
  try {
    const found = JSON.parse(sessionStorage.getItem(KEY));
    return found?.project === project ? found : null;
  } catch {
    return null;
  }
}

export function forget() {
  try {
    sessionStorage.removeItem(KEY);
  } catch { /* there is none */ }
}

/** As JSON, without the oldest turns where they are too many. */
function fitting(record) {
  for (let most = MOST_TURNS; ; most = Math.floor(most / 2)) {
    const talks = record.talks.map((talk) => ({ ...talk, turns: most ? talk.turns.slice(-most) : [] }));
    const text = JSON.stringify({ ...record, talks });
    if (text.length <= MOST_CHARACTERS || most === 0) return text;
  }
}
