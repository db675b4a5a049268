// The conversation of the playground, stored with its tab: it survives a reload and visits to other pages.
// It is not stored longer or for other tabs, because it is private and another program may use this address later.

const KEY = "arkor.playground.conversation";
const [MOST_TURNS, MOST_CHARACTERS] = [100, 300_000]; // of each model; of all that is kept

/** Store it: `place` is the query of the URL, `talks` are `{picked, turns}`, a turn `{question, text, note, state}`. */
export function keep(project, place, talks) {
  try {
    sessionStorage.setItem(KEY, fitting({ project, place, talks }));
  } catch { /* storage is full or forbidden: for this page only */ }
}

/** Return the stored conversation of a project, or null. */
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
  } catch { /* storage is forbidden */ }
}

/** Encode as JSON, without the oldest turns if there are too many. */
function fitting(record) {
  for (let most = MOST_TURNS; ; most = Math.floor(most / 2)) {
    const talks = record.talks.map((talk) => ({ ...talk, turns: most ? talk.turns.slice(-most) : [] }));
    const text = JSON.stringify({ ...record, talks });
    if (text.length <= MOST_CHARACTERS || most === 0) return text;
  }
}
