// The samples: a gallery ranked by any score, and which filters single out which of them.

const CARDS = 24;
const RANKINGS = {
  n_anomalous: ["anomaly filters that single it out", (row) => plural(row.n_anomalous, "anomaly filter")],
  n_filters: ["flagged filters that single it out", (row) => plural(row.n_filters, "flagged filter")],
  memorisation_rank: ["memorisation rank", (row) => `memorisation rank ${row.memorisation_rank.toFixed(3)}`],
  label_surprise: ["label surprise", (row) => `label surprise ${row.label_surprise.toFixed(2)} nats`],
  density: ["rarity of its maps", (row) => `rarity ${row.density.toFixed(3)}`],
};

function buildSamples() {
  if (!report.samples.length) return;
  const known = Object.keys(RANKINGS).filter((key) => report.samples.some((row) => row[key] > 0));
  if (!known.includes(state.ranking)) state.ranking = initial.ranking = known[0];
  byId("ranking").append(...known.map((key) => element("option", { value: key }, RANKINGS[key][0])));
  byId("ranking").onchange = () => choose({ ranking: byId("ranking").value, cards: 0 });
  byId("find").oninput = () => choose({ find: byId("find").value, cards: 0 });
  byId("cards-before").onclick = () => choose({ cards: state.cards - 1 });
  byId("cards-after").onclick = () => choose({ cards: state.cards + 1 });
}

function chosenSamples() {
  const wanted = state.find.trim().toLowerCase(), key = state.ranking;
  const text = (row) => [row.sample, row.class, row.planted, row.wrong ? "wrong label" : "", ...row.filters].join(" ").toLowerCase();
  return report.samples.filter((row) => row[key] > 0 && text(row).includes(wanted)).sort((a, b) => b[key] - a[key] || a.sample - b.sample);
}

function filterLinks(names) {
  const links = names.slice(0, 4).map((name) => {
    const f = numbers().get(name);
    return f === undefined ? name : element("button", { type: "button", className: "link", onclick: () => openFilter(f) }, name);
  });
  return links.flatMap((link, i) => (i ? [", ", link] : [link])).concat(names.length > 4 ? ` and ${names.length - 4} more` : []);
}

function numbers() {
  numbers.known ??= new Map(Array.from({ length: nFilters() }, (_, f) => [nameOf(f), f]));
  return numbers.known;
}

function card(row) {
  const badges = [row.planted && `planted: ${row.planted}`, row.wrong && "wrong label"].filter(Boolean).map((text) => element("span", { className: "badge" }, text));
  return element("li", { className: "card" }, thumb(row.sample), element("div", {},
    element("strong", {}, `sample ${row.sample}`), row.class ? element("span", { className: "class" }, row.class) : "", ...badges,
    element("span", { className: "score" }, RANKINGS[state.ranking][1](row)),
    row.sentence ? element("span", { className: "by" }, row.sentence) : "",
    row.filters.length ? element("span", { className: "by" }, "singled out by ", ...filterLinks(row.filters)) : ""));
}

function drawSamples() {
  if (!report.samples.length) return;
  const rows = chosenSamples(), pages = Math.max(1, Math.ceil(rows.length / CARDS)), page = clamp(state.cards, 0, pages - 1);
  byId("ranking").value = state.ranking;
  if (byId("find").value !== state.find) byId("find").value = state.find;
  byId("gallery").replaceChildren(...rows.slice(page * CARDS, (page + 1) * CARDS).map(card));
  byId("samples-found").textContent = `${plural(rows.length, "sample")}`;
  byId("no-samples").hidden = rows.length > 0;
  byId("cards-pager").hidden = pages < 2;
  byId("cards-page").textContent = `page ${page + 1} of ${pages}`;
  byId("cards-before").disabled = page === 0;
  byId("cards-after").disabled = page === pages - 1;
  drawMatrix(rows.filter(({ filters }) => filters.length).slice(0, 20));
}

// Which of the filters single out which of the samples.
function drawMatrix(rows) {
  const times = new Map();
  for (const { filters } of rows) for (const name of filters) times.set(name, (times.get(name) ?? 0) + 1);
  const names = [...times].sort((a, b) => b[1] - a[1]).slice(0, 24).map(([name]) => name);
  byId("matrix").hidden = !names.length;
  const head = element("tr", {}, element("th", { scope: "col" }, "sample"), ...names.map((name) => element("th", { scope: "col", className: "tilted" }, element("span", {}, name))));
  const lines = rows.map((row) => element("tr", {}, element("th", { scope: "row" }, thumb(row.sample), ` ${row.sample}`), ...names.map((name) => {
    const hit = row.filters.includes(name), odd = initial.anomalous[numbers().get(name)];
    return element("td", { className: hit ? (odd ? "hit odd" : "hit") : "" }, hit ? element("span", { className: "visually-hidden" }, odd ? "anomaly filter" : "flagged filter") : "");
  })));
  byId("matrix-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...lines));
}
