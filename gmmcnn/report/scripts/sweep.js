// A sweep: small multiples of one quantity over training, and two runs beside each other.

const jobs = report.jobs.filter((job) => job.metrics);
const chosen = { quantity: report.quantities[0]?.name, a: 0, b: Math.min(1, jobs.length - 1) };
const labelOf = (name) => report.quantities.find((quantity) => quantity.name === name).label;
const formatOf = (name) => (name.endsWith("accuracy") ? percent : String);

// What the address says, as far as there is such a thing; and back.
function recallChoice() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (report.quantities.some(({ name }) => name === said.get("show"))) chosen.quantity = said.get("show");
  for (const key of ["a", "b"]) {
    const found = jobs.findIndex(({ name }) => name === said.get(key));
    if (found >= 0) chosen[key] = found;
  }
}

function choose(changes) {
  Object.assign(chosen, changes);
  history.replaceState(null, "", `#${new URLSearchParams({ show: chosen.quantity, a: jobs[chosen.a].name, b: jobs[chosen.b].name })}`);
  drawAll();
}

function pointsOf(job) {
  return (job.metrics[chosen.quantity] ?? []).map((value, i) => [job.metrics.epoch[i], value]).filter(([, value]) => value !== null);
}

// Axes over all runs, so that pictures can be compared.
function rangesOf(shown) {
  const points = shown.flatMap(pointsOf), epochs = points.map(([epoch]) => epoch), values = points.map(([, value]) => value);
  return { epochs: [Math.min(...epochs), Math.max(...epochs)], marks: ticksAbove(Math.max(1e-9, ...values), 3) };
}

function drawCurves(host, shown, { epochs, marks }, classOf, label) {
  const { canvas, width } = picture(host, 200, label);
  const left = 48, right = width - 10, x = scale(epochs, [left + 6, right - 6]), y = scale([0, marks.at(-1)], [150, 26]);
  canvas.append(verticalAxis({ values: marks, at: y, left, right, name: labelOf(chosen.quantity), format: formatOf(chosen.quantity) }));
  canvas.append(horizontalAxis({ values: wholeTicks(...epochs, 5), at: x, y: 152, name: "epoch", middle: (left + right) / 2 }));
  for (const [i, job] of shown.entries()) {
    const points = pointsOf(job), line = curve(points.map(([epoch, value]) => [x(epoch), y(value)]), classOf(i), points.length < 12);
    line.onpointerenter = () => { byId("pointed").value = job.name; line.classList.add("lit"); };
    line.onpointerleave = () => { byId("pointed").value = ""; line.classList.remove("lit"); };
    canvas.append(line);
  }
}

const seeds = [...new Set(jobs.map((job) => job.settings[report.over] ?? ""))];
const colourOf = (job) => `k${seeds.indexOf(job.settings[report.over] ?? "") % 10}`;

function drawPanels() {
  const groups = new Map();
  for (const job of jobs) groups.set(job.group, [...(groups.get(job.group) ?? []), job]);
  const ranges = rangesOf(jobs), host = byId("panels");
  host.replaceChildren(...[...groups].map(([name, members]) => {
    const chart = element("div", { className: "chart" });
    return element("figure", {}, element("figcaption", {}, element("h3", {}, name || plural(members.length, "run")), element("span", { className: "note" }, name ? plural(members.length, "run") : "")), chart);
  }));
  [...groups.values()].forEach((members, i) => drawCurves(host.children[i].lastChild, members, ranges, (turn) => colourOf(members[turn]), `${labelOf(chosen.quantity)} over training, ${plural(members.length, "run")}`));
}

function tableOf(host, heads, rows) {
  const row = (cells, name) => element("tr", {}, ...cells.map((cell, i) => (i && name === "td" ? element("td", {}, cell) : element("th", { scope: name === "th" ? "col" : "row" }, cell))));
  host.replaceChildren(element("thead", {}, row(heads, "th")), element("tbody", {}, ...rows.map((cells) => row(cells, "td"))));
}

function drawComparison() {
  const a = jobs[chosen.a], b = jobs[chosen.b];
  const settings = report.settings.filter((name) => a.settings[name] !== b.settings[name]).map((name) => [name, a.settings[name] ?? "", b.settings[name] ?? "", ""]);
  const last = (job, name) => (job.metrics[name] ?? []).filter((value) => value !== null).at(-1) ?? null;
  const ends = report.quantities.map(({ name, label }) => [label, last(a, name), last(b, name)]).filter(([, x, y]) => x !== null || y !== null);
  const difference = (x, y) => (x === null || y === null ? "" : `${y > x ? "+" : ""}${number(y - x)}`.replace("-", "−"));
  tableOf(byId("differences"), ["setting or result", "A", "B", "B − A"], [...settings, ...ends.map(([label, x, y]) => [label, number(x), number(y), difference(x, y)])]);
  const layers = [...new Set([...Object.keys(a.layers), ...Object.keys(b.layers)])];
  const share = (job, layer) => (job.layers[layer] ? `${job.layers[layer][0]} of ${job.layers[layer][1]}` : "–");
  tableOf(byId("by-layer"), ["layer", "A", "B"], layers.map((layer) => [layer, share(a, layer), share(b, layer)]));
  drawCurves(byId("both"), [a, b], rangesOf([a, b]), (turn) => ["train", "validation"][turn], `${labelOf(chosen.quantity)} of runs A and B over training`);
  drawRanks(a.ranks, b.ranks);
}

// Ranks of the same samples in two runs; Spearman's correlation is that of their ranks, which these are.
function drawRanks(ofA, ofB) {
  const shared = Object.keys(ofA).filter((sample) => sample in ofB).map((sample) => [ofA[sample], ofB[sample], sample]);
  byId("ranks").replaceChildren();
  if (shared.length < 3) {
    byId("agreement").textContent = "They look at different samples, or gave them no ranks.";
    return;
  }
  const first = (key) => new Set([...shared].sort((p, q) => q[key] - p[key]).slice(0, 20).map(([, , sample]) => sample));
  const inA = first(0), both = [...first(1)].filter((sample) => inA.has(sample)).length;
  byId("agreement").textContent = `${plural(shared.length, "sample")}; correlation ${number(correlation(shared))}; of the first 20 of each run ${both} are the same (by chance ${number(Math.min(400 / shared.length, 20))}).`;
  const { canvas, width } = picture(byId("ranks"), 280, `Memorisation rank of ${plural(shared.length, "sample")} in runs A and B`);
  const left = 48, right = width - 10, x = scale([0, 1], [left + 6, right - 6]), y = scale([0, 1], [226, 26]);
  canvas.append(verticalAxis({ values: ticks(0, 1, 4), at: y, left, right, name: "rank in B" }));
  canvas.append(horizontalAxis({ values: ticks(0, 1, 4), at: x, y: 230, name: "rank in A", middle: (left + right) / 2 }));
  for (const [p, q, sample] of shared) canvas.append(svg("circle", { class: "cloud k0", cx: x(p), cy: y(q), r: 2.5 }, svg("title", {}, `sample ${sample} of the data set`)));
}

function correlation(pairs) {
  const mean = (key) => pairs.reduce((sum, pair) => sum + pair[key], 0) / pairs.length, p = mean(0), q = mean(1);
  const moment = (f) => pairs.reduce((sum, [x, y]) => sum + f(x - p, y - q), 0);
  return moment((x, y) => x * y) / (Math.sqrt(moment((x) => x * x) * moment((_, y) => y * y)) || 1);
}

function drawAll() {
  byId("quantity").value = chosen.quantity;
  byId("run-a").value = chosen.a;
  byId("run-b").value = chosen.b;
  drawPanels();
  drawComparison();
}

if (jobs.length) {
  document.documentElement.dataset.scripted = "";
  byId("quantity").append(...report.quantities.map(({ name, label }) => element("option", { value: name }, label)));
  byId("quantity").onchange = (event) => choose({ quantity: event.target.value });
  for (const key of ["a", "b"]) {
    byId(`run-${key}`).append(...jobs.map(({ name }, i) => element("option", { value: i }, name)));
    byId(`run-${key}`).onchange = (event) => choose({ [key]: Number(event.target.value) });
  }
  if (seeds.length > 1 && seeds.length <= 10) byId("seeds").append(report.over, ...seeds.map((seed, i) => element("span", { className: `key k${i}` }, seed)));
  recallChoice();
  drawAll();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; widthOf.known.clear(); drawAll(); } });
  addEventListener("hashchange", () => { recallChoice(); drawAll(); });
}
byId("page-ready").hidden = true;
for (const link of document.querySelectorAll("nav a")) {
  link.onclick = (event) => { event.preventDefault(); document.querySelector(link.hash).scrollIntoView(); };
}
document.documentElement.dataset.ready = "true"; // tests wait for it
