// What the reader has chosen, kept in the address, so that a link shows the same; whoever draws it subscribes.

const initial = { at: { ...report.places }, epoch: report.epochs.length - 1, filter: null, sort: "flagged", down: true, page: 0, search: "", layer: "", only: true, ranking: "", find: "", cards: 0 };
const state = { ...initial, at: { ...initial.at } };
const listeners = [];
const follow = (...parts) => (draw) => listeners.push({ parts, draw });
const PLAIN = ["sort", "search", "layer", "ranking", "find"];
let pending = null;

// Change part of it: everything that shows this part is drawn again before the next frame.
function choose(changes) {
  Object.assign(state, changes);
  if (!pending) {
    pending = new Set();
    requestAnimationFrame(redraw);
  }
  for (const part of Object.keys(changes)) pending.add(part);
}

function redraw() {
  const changed = pending ?? new Set();
  pending = null;
  for (const { parts, draw } of listeners) if (parts.some((part) => changed.has(part))) draw();
  clearTimeout(redraw.later);
  redraw.later = setTimeout(remember, 100); // browsers take their time to write an address
}

const moved = () => Object.keys(state.at).filter((name) => state.at[name] !== initial.at[name]);

function remember() {
  const words = new URLSearchParams();
  for (const name of moved()) words.set(name, report.sliders[name][state.at[name]]);
  if (state.epoch !== initial.epoch) words.set("epoch", report.epochs[state.epoch]);
  if (state.filter !== initial.filter) words.set("filter", nameOf(state.filter));
  for (const name of PLAIN) if (state[name] !== initial[name]) words.set(name, state[name]);
  if (state.down !== initial.down) words.set("down", state.down);
  if (state.only !== initial.only) words.set("only", state.only);
  const hash = words.toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

// Read the address; what it says and this report does not know is passed over.
function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state.at)) {
    const place = report.sliders[name].indexOf(Number(words.get(name) ?? NaN));
    if (place >= 0) state.at[name] = place;
  }
  const epoch = report.epochs.indexOf(Number(words.get("epoch") ?? NaN));
  if (epoch >= 0) state.epoch = epoch;
  for (let f = 0; words.has("filter") && f < nFilters(); f++) if (nameOf(f) === words.get("filter")) state.filter = f;
  for (const name of PLAIN) if (words.has(name)) state[name] = words.get(name);
  for (const name of ["down", "only"]) if (words.has(name)) state[name] = words.get(name) === "true";
}
