// One filter in full: its clusters and their images, its index, its course, and what would change its verdict.

function openFilter(f) {
  choose({ filter: f });
  byId("filter").scrollIntoView({ block: "start" });
  byId("filter-name").focus({ preventScroll: true });
}

function buildFilter() {
  const step = (by) => () => {
    const rows = chosenFilters(), at = rows.indexOf(state.filter);
    if (rows.length) choose({ filter: rows[(at + by + rows.length) % rows.length] });
  };
  byId("filter-before").onclick = step(-1);
  byId("filter-after").onclick = step(1);
}

// Clusters that are small with the thresholds chosen. Where dots are left out, those of small clusters are not.
function smallClusters({ members }) {
  const most = report.sliders.small_cluster[state.at.small_cluster];
  return new Set([...members].filter(([cluster, dots]) => cluster !== 255 && dots.length <= most).map(([cluster]) => cluster).sort((a, b) => a - b));
}

let onShow = ""; // filter, small clusters and width of what is drawn: it stays while they do

function drawFilter() {
  const f = state.filter, scatter = scatterOf(f), small = smallClusters(scatter), share = verdict.flagged[f] / nClusterings(), [low, high] = interval(share);
  byId("filter-name").textContent = nameOf(f);
  byId("filter-verdict").textContent = isLive(f)
    ? `${verdict.anomalous[f] ? "Anomalous" : "Not anomalous"}: flagged in ${percent(share)} of ${whole(nClusterings())} clusterings (95 % interval ${Math.round(100 * low)}–${Math.round(100 * high)} %).`
    : `Cannot be judged: ${report.statuses[arrays.status[f]].replaceAll("_", " ")}.`;
  const wanted = [f, ...small, innerWidth].join();
  if (wanted !== onShow) drawClusters(f, scatter, small);
  onShow = wanted;
  drawOverTraining(f);
  drawMargins(f);
}

function drawClusters(f, scatter, small) {
  const clusters = [...scatter.members.keys()].filter((cluster) => cluster !== 255).length;
  const repeat = nClusterings() > report.batches ? `, clustering ${scatter.repeat + 1}` : "";
  const left = scatter.dots.length < report.samplesPerBatch ? `; ${whole(scatter.dots.length)} of ${whole(report.samplesPerBatch)} samples drawn` : "";
  byId("filter-drawn").textContent = clusters ? `Batch ${scatter.batch}${repeat}: ${plural(clusters, "cluster")}${left}.` : "There is no clustering of this filter.";
  drawMembers(byId("filter-images"), scatter, small);
  const light = drawScatter(byId("filter-scatter"), scatter, small, { show: preview, pick: drawPicked });
  for (const image of byId("filter-images").querySelectorAll(".thumb")) {
    image.onpointerenter = () => light(Number(image.dataset.sample));
    image.onpointerleave = () => light(null);
  }
  drawPicked([]);
  preview(null);
  const tried = report.arrays.indexByK.shape[1];
  drawIndex(byId("filter-index"), Array.from(arrays.indexByK.subarray(f * tried, (f + 1) * tried)), arrays.n_components[f]);
}

function preview(dot) {
  const small = dot && dot.cluster !== 255 ? `, cluster ${dot.cluster + 1}` : "";
  byId("preview").replaceChildren(dot ? thumb(dot.sample, small) : "");
  byId("preview-name").textContent = dot ? `sample ${dot.sample}${className(dot.sample) ? `, ${className(dot.sample)}` : ""}${small}` : "Point at a dot to see its image; drag a rectangle to see many.";
}

const MOST_IMAGES = 12;

function imagesOf(samples) {
  const images = samples.slice(0, MOST_IMAGES).map((sample) => thumb(sample));
  return samples.length > MOST_IMAGES ? [...images, element("span", { className: "more" }, `+${whole(samples.length - MOST_IMAGES)}`)] : images;
}

// Images of the small clusters, then some of each other one, so that there is something to compare them with.
function drawMembers(host, { members }, small) {
  const clusters = [...members.keys()].filter((cluster) => cluster !== 255).sort((a, b) => small.has(b) - small.has(a) || members.get(a).length - members.get(b).length);
  const marks = new Map([...small].map((cluster, turn) => [cluster, Object.keys(MARKS)[turn % 4]]));
  host.replaceChildren(...clusters.map((cluster) => {
    const dots = members.get(cluster), mark = element("span", { className: marks.has(cluster) ? "mark" : `mark k${cluster % 10}`, "aria-hidden": "true" }, marks.get(cluster) ?? "●");
    const name = element("span", { className: "group-name" }, `${marks.has(cluster) ? "small cluster" : "cluster"} of ${whole(dots.length)}`);
    const shown = marks.has(cluster) ? dots : dots.slice(0, 6);
    return element("div", { className: "group" }, mark, name, element("span", { className: "images" }, ...imagesOf(shown.map(({ sample }) => sample))));
  }));
}

function drawPicked(samples) {
  byId("picked").hidden = !samples.length;
  byId("picked-images").replaceChildren(...imagesOf(samples));
  byId("picked-name").textContent = `${plural(samples.length, "sample")} in the rectangle`;
}

function drawOverTraining(f) {
  const host = byId("filter-course");
  host.parentElement.hidden = report.epochs.length < 2;
  if (report.epochs.length < 2) return;
  const shares = report.epochs.map((_, e) => flaggedShare(f, e));
  drawShares(host, report.epochs, shares, report.sliders.min_frequency[state.at.min_frequency]);
}

function flaggedShare(f, epoch) {
  const m = nClusterings(), { at } = state, rows = [at.min_small_clusters, ALPHAS, ALPHAS + 1].map((which) => plane(epoch, which));
  let flags = 0;
  for (let i = f * m; i < (f + 1) * m; i++) flags += rows[0][i] <= at.small_cluster && rows[1][i] > at.ch_ratio && rows[2][i] > at.activation_ratio;
  return flags / m;
}

// For each threshold: where it stands, and from where on, moved alone, the verdict is another.
function drawMargins(f) {
  const rows = isLive(f) ? turningPoints(f, state.epoch, state.at) : [];
  byId("margins").hidden = !rows.length;
  byId("margins-body").replaceChildren(...rows.map(({ slider, upwards, value, extreme }) => {
    const said = value === undefined ? "at no value" : extreme ? "at any value here" : upwards ? `from ${value} on` : `up to ${value}`;
    return element("tr", {}, element("th", { scope: "row" }, `${SLIDERS[slider].symbol} ${SLIDERS[slider].name}`), element("td", {}, shown(slider)), element("td", {}, said));
  }));
}
