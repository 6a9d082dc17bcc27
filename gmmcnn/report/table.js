// The filter table: sorted, narrowed and paged here, so that thousands of filters cost no more than one page of rows.

const ROWS_PER_PAGE = 50;
const COLUMNS = [
  ["layer", "layer", "text"], ["filter", "filter", "count"], ["status", "status", "status"], ["flag_frequency", "flagged", "share"],
  ["n_components", "clusters", "count"], ["calinski_harabasz", "CH index", "number"], ["smallest_cluster", "smallest cluster", "count"],
  ["n_small_clusters", "small clusters", "count"], ["mean_activation", "mean activation", "number"], ["unbalanced", "un\u00adbalanced", "flag"],
  ["separated", "separated", "flag"], ["active", "active", "flag"], ["reason", "reason", "text"],
].filter(([key]) => key in report.filters);

const percent = (share) => Math.round(100 * share);

function interval(i) {
  const { flag_frequency_low: low, flag_frequency_high: high } = report.filters;
  return low?.[i] == null ? "" : `(${percent(low[i])}–${percent(high[i])})`;
}

const formats = {
  text: (value) => value ?? "",
  status: (value) => value.replaceAll("_", " "),
  count: (value) => (value === null ? "–" : value.toLocaleString("en")),
  share: (value, i) => (value === null ? "–" : `${percent(value)} % ${interval(i)}`),
  number: (value) => value === null ? "–" : Math.abs(value) >= 1e6 ? value.toExponential(1) : value.toLocaleString("en", { maximumSignificantDigits: 3 }),
  flag: (value) => (value ? "✓" : "·"),
};

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

// Ascending; what is missing always comes last.
function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  return direction * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
}

function filterTable(host) {
  const { filters } = report;
  const everything = filters.layer.map((_, i) => i);
  const anyAnomalous = filters.anomalous.some(Boolean);
  const state = { key: null, direction: 1, page: 0 };

  const only = element("input", { type: "checkbox", checked: anyAnomalous });
  const layer = element("select", {}, element("option", { value: "" }, "all layers"), ...[...new Set(filters.layer)].map((name) => element("option", { value: name }, name)));
  const count = element("span", { className: "count", role: "status" });
  const headers = COLUMNS.map(([key, title, kind]) => {
    const button = element("button", { type: "button", onclick: () => sortBy(key, kind) }, title);
    const header = element("th", { className: kind === "status" ? "text" : kind, scope: "col" }, button);
    header.dataset.key = key;
    return header;
  });
  const body = element("tbody");
  const previous = element("button", { type: "button", onclick: () => turn(-1) }, "Previous");
  const next = element("button", { type: "button", onclick: () => turn(1) }, "Next");
  const position = element("span");
  const pager = element("div", { className: "pager" }, previous, next, position);
  const grid = element("div", { className: "grid", tabIndex: 0 }, element("table", {}, element("thead", {}, element("tr", {}, ...headers)), body));
  grid.setAttribute("role", "region");
  grid.setAttribute("aria-label", "Filters");

  function sortBy(key, kind) {
    const first = kind === "text" || key === "filter" || key === "smallest_cluster" ? 1 : -1;
    state.direction = state.key === key ? -state.direction : first;
    state.key = key;
    state.page = 0;
    show();
  }

  function turn(pages) {
    state.page += pages;
    grid.scrollTop = 0;
    show();
  }

  function chosen() {
    const rows = everything.filter((i) => (!only.checked || filters.anomalous[i]) && (!layer.value || filters.layer[i] === layer.value));
    const inOrder = (a, b) => filters.anomalous[b] - filters.anomalous[a] || filters.flag_frequency[b] - filters.flag_frequency[a] || a - b;
    const values = filters[state.key];
    return rows.sort(values ? (a, b) => compare(values[a], values[b], state.direction) || a - b : inOrder);
  }

  function row(i) {
    const cells = COLUMNS.map(([key, , kind]) => {
      const cell = element("td", { className: `${kind === "status" ? "text" : kind} ${key}` }, formats[kind](filters[key][i], i));
      if (kind === "flag") cell.setAttribute("aria-label", filters[key][i] ? "yes" : "no");
      return cell;
    });
    const kind = filters.anomalous[i] ? "anomalous" : filters.status[i] === "ok" ? "" : "out";
    return element("tr", { className: kind }, ...cells);
  }

  function show() {
    const rows = chosen();
    const first = state.page * ROWS_PER_PAGE, last = Math.min(first + ROWS_PER_PAGE, rows.length);
    body.replaceChildren(...rows.slice(first, last).map(row));
    for (const header of headers) {
      if (header.dataset.key === state.key) header.setAttribute("aria-sort", state.direction > 0 ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
    }
    count.textContent = `${rows.length.toLocaleString("en")} of ${everything.length.toLocaleString("en")} filters`;
    position.textContent = `${first + 1}–${last} of ${rows.length.toLocaleString("en")}`;
    previous.disabled = state.page === 0;
    next.disabled = last >= rows.length;
    pager.hidden = rows.length <= ROWS_PER_PAGE;
  }

  for (const control of [only, layer]) control.onchange = () => { state.page = 0; show(); };
  const controls = element("div", { className: "controls" }, element("label", {}, only, "anomalous only"), element("label", {}, "layer", layer), count);
  host.replaceChildren(controls, grid, pager);
  show();
}

const host = document.getElementById("filter-table");
if (host && report.filters.layer?.length) filterTable(host);
