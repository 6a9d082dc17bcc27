// Everything put together, once the arrays are unpacked.

async function main() {
  await unpack();
  document.documentElement.dataset.scripted = "";
  thumb.places = new Map(Array.from(arrays.images, (sample, place) => [sample, place]));
  if (report.masking) drawMasking(byId("masking-chart"), report.masking);
  if (nFilters()) showFilters();
  byId("page-ready").hidden = true;
  globalThis.gmmcnn = { report, arrays, screened }; // for the browser's console
  document.documentElement.dataset.ready = "true"; // tests wait for it
}

function showFilters() {
  verdict = screened(initial.epoch, initial.at);
  initial.filter = state.filter = verdict.flagged.reduce((best, count, f) => (count > verdict.flagged[best] ? f : best), 0);
  initial.anomalous = verdict.anomalous; // of the thresholds that the report, and its outlier samples, were made with
  initial.only = state.only = verdict.nAnomalous > 0;
  recall();
  buildSliders(byId("sliders"));
  buildScrubber();
  buildTable();
  buildFilter();
  buildSamples();
  follow("at", "epoch")(() => { verdict = screened(state.epoch, state.at); });
  follow("at")(drawSliders);
  follow("at", "epoch")(drawCounts);
  follow("at", "epoch")(drawCourse);
  follow("at", "epoch")(drawStrips);
  follow("at", "epoch", "sort", "down", "page", "search", "layer", "only", "filter")(drawTable);
  follow("at", "epoch", "filter")(drawFilter);
  follow("ranking", "find", "cards")(drawSamples);
  const everything = () => choose({ ...state });
  everything();
  redraw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; widthOf.known.clear(); everything(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", everything);
  addEventListener("beforeprint", redraw);
  addEventListener("hashchange", () => { recall(); everything(); });
  addEventListener("keydown", shortcut);
}

// "/" to the search, "[" and "]" to the filter before and after, "Escape" out of a field.
function shortcut(event) {
  const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { "/": () => byId("search").focus(), "[": () => byId("filter-before").click(), "]": () => byId("filter-after").click() };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
}

// Links within the page scroll, and leave the address to what the reader has chosen.
for (const link of document.querySelectorAll("nav a")) {
  link.onclick = (event) => { event.preventDefault(); document.querySelector(link.hash).scrollIntoView(); };
}
main();
