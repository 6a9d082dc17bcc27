// The table of filters: searched, sorted and paged here, so that thousands of filters cost no more than a page of rows.

const ROWS = 25;
const flag = (criterion) => (f) => verdict.often(verdict[criterion][f]);
const COLUMNS = [ // key, title, kind, value of a filter, whether a narrow screen leaves it out
  { key: "filter", title: "filter", kind: "text", value: (f) => f },
  { key: "flagged", title: "flagged", kind: "share", value: (f) => verdict.flagged[f] / nClusterings() },
  { key: "unbalanced", title: "un\u00adbalanced", kind: "flag", value: flag("unbalanced") },
  { key: "separated", title: "separated", kind: "flag", value: flag("separated") },
  { key: "active", title: "active", kind: "flag", value: flag("active") },
  { key: "n_components", title: "clusters", kind: "number", wide: true },
  { key: "smallest_cluster", title: "smallest cluster", kind: "number", wide: true },
  { key: "ch_over_average", title: "CH × average", kind: "number", wide: true },
  { key: "activation_over_average", title: "activation × average", kind: "number", wide: true },
  { key: "status", title: "status", kind: "text", wide: true, value: (f) => report.statuses[arrays.status[f]].replaceAll("_", " ") },
].map((column) => ({ value: (f) => arrays[column.key][f], ...column }));
const FURTHER = ["n_components_share", "calinski_harabasz", "n_small_clusters", "mean_activation", "active_share"];
const OF_THE_LAST = new Set(["n_components", "smallest_cluster", "ch_over_average", "activation_over_average", "status"]);

function compare(a, b) {
  if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
  return Number(a) - Number(b);
}

// Filters that the controls ask for, in the order that the headers ask for; what is missing comes last.
function chosenFilters() {
  const wanted = state.search.trim().toLowerCase(), rows = [];
  for (let f = 0; f < nFilters(); f++) {
    if (state.only && !verdict.anomalous[f]) continue;
    if (state.layer && report.layers[arrays.layer[f]] !== state.layer) continue;
    if (wanted && !nameOf(f).toLowerCase().includes(wanted)) continue;
    rows.push(f);
  }
  const { value } = COLUMNS.find(({ key }) => key === state.sort) ?? COLUMNS[1], values = [];
  for (const f of rows) values[f] = value(f);
  const sign = state.down ? -1 : 1, missing = (v) => Number(typeof v === "number" && Number.isNaN(v));
  return rows.sort((f, g) => {
    const a = values[f], b = values[g], gone = missing(a) - missing(b);
    return gone || (missing(a) ? 0 : sign * compare(a, b)) || f - g;
  });
}

function cell(f, { key, kind, value, wide }) {
  if (key === "filter") {
    const open = element("button", { type: "button", className: "link", onclick: () => openFilter(f) }, nameOf(f));
    return element("th", { scope: "row" }, open);
  }
  const known = state.epoch === initial.epoch || !OF_THE_LAST.has(key), content = known ? value(f) : NaN;
  const node = element("td", { className: `${kind}${wide ? " wide" : ""}` });
  if (kind === "flag") {
    node.append(element("span", { "aria-hidden": "true" }, content ? "✓" : "·"), element("span", { className: "visually-hidden" }, content ? "yes" : "no"));
  } else if (kind === "share") {
    const [low, high] = interval(content);
    node.append(percent(content), " ", element("small", {}, `${Math.round(100 * low)}–${Math.round(100 * high)}`));
  } else node.append(typeof content === "string" ? content : number(content));
  return node;
}

function buildTable() {
  const heads = COLUMNS.map(({ key, title, kind, wide }) => {
    const first = kind !== "text" && key !== "smallest_cluster"; // where the greatest is of interest
    const sort = element("button", { type: "button", onclick: () => choose({ sort: key, down: state.sort === key ? !state.down : first, page: 0 }) }, title);
    return element("th", { className: `${kind}${wide ? " wide" : ""}`, scope: "col", "data-key": key }, sort);
  });
  byId("table-head").replaceChildren(...heads);
  byId("layer").append(...report.layers.map((name) => element("option", { value: name }, name)));
  byId("only").onchange = () => choose({ only: byId("only").checked, page: 0 });
  byId("layer").onchange = () => choose({ layer: byId("layer").value, page: 0 });
  byId("search").oninput = () => choose({ search: byId("search").value, page: 0 });
  byId("previous").onclick = () => choose({ page: state.page - 1 });
  byId("next").onclick = () => choose({ page: state.page + 1 });
  byId("csv").onclick = saveTable;
}

function drawTable() {
  const rows = chosenFilters(), pages = Math.max(1, Math.ceil(rows.length / ROWS)), page = clamp(state.page, 0, pages - 1);
  byId("only").checked = state.only;
  byId("layer").value = state.layer;
  if (byId("search").value !== state.search) byId("search").value = state.search;
  byId("table-body").replaceChildren(...rows.slice(page * ROWS, (page + 1) * ROWS).map((f) =>
    element("tr", { className: [verdict.anomalous[f] ? "anomalous" : isLive(f) ? "" : "out", f === state.filter ? "open" : ""].join(" ") }, ...COLUMNS.map((column) => cell(f, column)))));
  for (const head of byId("table-head").children) {
    if (head.dataset.key === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  byId("found").textContent = `${whole(rows.length)} of ${plural(nFilters(), "filter")}`;
  byId("none-found").hidden = rows.length > 0;
  byId("pager").hidden = pages < 2;
  byId("page").textContent = `page ${page + 1} of ${whole(pages)}`;
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === pages - 1;
}

// The rows as they are chosen and sorted, all columns, for a spreadsheet.
function saveTable() {
  const text = (value) => (/^'*[=+\-@\t\r]./s.test(value) ? `'${value}` : value); // no formula, as in gmmcnn/files.py
  const quote = (value) => (/[",\r\n]/.test(value) ? `"${text(value).replaceAll('"', '""')}"` : text(value));
  const plain = (value) => (typeof value === "string" ? quote(value) : typeof value === "boolean" ? String(value) : Number.isNaN(value) ? "" : value > 1e30 ? "inf" : String(Number(value.toPrecision(7))));
  const columns = [
    ["layer", (f) => report.layers[arrays.layer[f]]], ["filter", (f) => arrays.filter[f]], ["anomalous", (f) => verdict.anomalous[f]],
    ...COLUMNS.slice(1).filter(({ key }) => state.epoch === initial.epoch || !OF_THE_LAST.has(key)).map(({ key, value }) => [key, value]),
    ...(state.epoch === initial.epoch ? FURTHER : []).map((key) => [key, (f) => arrays[key][f]]),
  ];
  const lines = [columns.map(([key]) => key), ...chosenFilters().map((f) => columns.map(([, value]) => plain(value(f))))];
  const address = URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\n") + "\n"], { type: "text/csv" }));
  element("a", { href: address, download: "filters.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
