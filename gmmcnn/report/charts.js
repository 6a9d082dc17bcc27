"use strict";
// Charts of the report, drawn as SVG at the width that the screen gives them.

const report = JSON.parse(document.getElementById("data").textContent);
const tooltip = document.getElementById("tooltip");
const MARKS = ["M0-6 6 0 0 6-6 0Z", "M0-6 6 5-6 5Z", "M-5-5H5V5H-5Z", "M0 6 6-5-6-5Z", "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z"];
const CLUSTER_COLOURS = 10;

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function canvas(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

const scale = ([from, to], [start, end]) => (value) => start + ((value - from) / (to - from || 1)) * (end - start);

const extent = (values) => {
  const known = values.filter((value) => value !== null);
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
};

// Round numbers that cover [low, high], about `count` of them, no closer than `finest`.
function ticks([low, high], count, finest = 0) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(finest, power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999));
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: Math.max(last, first + 1) - first + 1 }, (_, i) => (first + i) * step);
}

const trimmed = (value) => String(Number(value.toPrecision(6))).replace("-", "−");
const percent = (share) => trimmed(Math.round(share * 1000) / 10) + " %";
const signed = (points) => (points > 0 ? "+" : "") + trimmed(Math.round(points * 10) / 10);

function className(sample) {
  const target = report.targets[sample];
  if (target === undefined) return "";
  return report.class_names?.[target] ?? `class ${target}`;
}

function thumb(sample) {
  const image = document.createElement("span");
  image.className = `thumb i${sample}`;
  return image;
}

function showTooltip(pointer, ...content) {
  tooltip.replaceChildren(...content);
  tooltip.hidden = false;
  const { clientWidth } = document.documentElement;
  const right = pointer.clientX + 18 + tooltip.offsetWidth;
  const left = right < clientWidth ? pointer.clientX + 18 : Math.max(8, pointer.clientX - 18 - tooltip.offsetWidth);
  tooltip.style.left = `${left + scrollX}px`;
  tooltip.style.top = `${pointer.clientY + scrollY + 14}px`;
}

const hideTooltip = () => { tooltip.hidden = true; };

// Pointer position in the coordinates of the drawing.
function locate(drawing, pointer) {
  const box = drawing.getBoundingClientRect();
  const ratio = drawing.viewBox.baseVal.width / box.width;
  return [(pointer.clientX - box.left) * ratio, (pointer.clientY - box.top) * ratio];
}

function drawAtWidth(host, draw) {
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.round(host.clientWidth);
    if (width && width !== drawn) host.replaceChildren(draw((drawn = width)));
  }).observe(host);
}

// --- Curves over the epochs: panels one above the other, one epoch axis -------------------------------------------------

function drawTraining(width) {
  const { epoch, panels } = report.training;
  const panelHeight = width < 500 ? 130 : 170, head = 46, foot = 40, left = 46, right = 14;
  const height = panels.length * (panelHeight + head) + foot;
  const drawing = canvas(width, height, "Accuracy and number of anomaly filters over the epochs; the table below holds the values");
  const x = scale(extent(epoch), [left, width - right]);
  const bottom = height - foot;

  panels.forEach((panel, row) => {
    const top = row * (panelHeight + head) + head, base = top + panelHeight;
    const y = drawPanel(drawing, panel, [left, width - right], [top, base]);
    for (const line of panel.lines) drawLine(drawing, line, epoch, x, y);
  });
  for (const value of ticks(extent(epoch), width < 500 ? 4 : 8, 1)) {
    if (value < epoch[0] || value > epoch[epoch.length - 1]) continue;
    drawing.append(svg("text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, trimmed(value)));
  }
  drawing.append(svg("text", { x: (left + width - right) / 2, y: bottom + 36, "text-anchor": "middle" }, "epoch"));

  const cursor = svg("line", { class: "cursor", y1: head, y2: bottom, visibility: "hidden" });
  drawing.append(cursor);
  drawing.addEventListener("pointermove", (pointer) => {
    const [at] = locate(drawing, pointer);
    const nearest = epoch.reduce((best, _, i) => (Math.abs(x(epoch[i]) - at) < Math.abs(x(epoch[best]) - at) ? i : best), 0);
    cursor.setAttribute("x1", x(epoch[nearest]));
    cursor.setAttribute("x2", x(epoch[nearest]));
    cursor.setAttribute("visibility", "visible");
    const values = panels.flatMap((panel) => panel.lines.map(({ name, values }) => [name, values[nearest], panel.unit]))
      .filter(([, value]) => value !== null)
      .map(([name, value, unit]) => `${name} ${unit === "percent" ? percent(value) : trimmed(value)}`);
    showTooltip(pointer, [`epoch ${epoch[nearest]}`, ...values].join("\n"));
  });
  drawing.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    hideTooltip();
  });
  return drawing;
}

function drawPanel(drawing, panel, [left, right], [top, base]) {
  const values = panel.lines.flatMap((line) => line.values);
  const isShare = panel.unit === "percent";
  const range = isShare ? extent(values) : [0, Math.max(1, extent(values)[1])];
  const steps = ticks(range, 5, isShare ? 0.01 : 1);
  const y = scale([steps[0], steps[steps.length - 1]], [base, top]);
  for (const value of steps) {
    drawing.append(svg("line", { class: value === 0 ? "axis" : "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, isShare ? percent(value) : trimmed(value)));
  }
  const title = svg("text", { class: "title", x: 0, y: top - 18 }, panel.title);
  for (const { name, style } of panel.lines) title.append(svg("tspan", { dx: 14, class: `legend-text ${style}` }, name));
  drawing.append(title);
  return y;
}

function drawLine(drawing, { style, values }, epoch, x, y) {
  const known = values.map((value, i) => [value, i]).filter(([value]) => value !== null);
  const path = known.map(([value, i]) => `${x(epoch[i]).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
  drawing.append(svg("path", { class: `series ${style}`, d: `M${path}` }));
  if (style !== "anomalous" && known.length > 1) return;
  for (const [value, i] of known) drawing.append(svg("circle", { class: `dot ${style}`, cx: x(epoch[i]), cy: y(value), r: 4.5 }));
}

// --- Scatter of one filter's clusters -----------------------------------------------------------------------------------

function placed(plot, width, height) {
  const margin = { left: 30, right: 12, top: 10, bottom: 26 };
  const spread = plot.x.map((_, i) => (i * 0.618034) % 1); // one dimension: spread so that dots do not hide each other
  const vertical = plot.y ?? spread;
  const padded = ([low, high]) => [low - (high - low || 1) * 0.04, high + (high - low || 1) * 0.04];
  const x = scale(padded(extent(plot.x)), [margin.left, width - margin.right]);
  const y = scale(padded(extent(vertical)), [height - margin.bottom, margin.top]);
  return plot.sample
    .map((sample, i) => ({ sample, cluster: plot.cluster[i], known: plot.x[i] !== null && vertical[i] !== null, x: x(plot.x[i]), y: y(vertical[i]) }))
    .filter((point) => point.known);
}

function drawScatter(plot, figure, width) {
  const height = Math.round(Math.min(300, width * 0.7));
  const drawing = canvas(width, height, `Scatter of ${plot.sample.length} samples`);
  const points = placed(plot, width, height);
  drawing.append(svg("path", { class: "rule", d: `M${30} 4V${height - 22}H${width - 6}` }));
  drawing.append(svg("text", { x: width - 6, y: height - 6, "text-anchor": "end" }, plot.y ? "1st direction" : "the one direction kept (height only spreads the dots)"));
  if (plot.y) drawing.append(svg("text", { transform: `translate(20 ${4}) rotate(-90)`, "text-anchor": "end" }, "2nd direction"));

  const isSmall = (point) => plot.small[point.cluster] === true;
  const clusters = [...new Set(points.map((point) => point.cluster))].sort((a, b) => a - b);
  const smallOnes = clusters.filter((cluster) => plot.small[cluster]);
  for (const cluster of clusters.filter((cluster) => !plot.small[cluster])) {
    const dots = points.filter((point) => point.cluster === cluster).map(({ x, y }) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`);
    drawing.append(svg("path", { class: "cloud", style: `--c:var(--k${((cluster % CLUSTER_COLOURS) + CLUSTER_COLOURS) % CLUSTER_COLOURS})`, d: dots.join("") }));
  }
  for (const point of points.filter(isSmall)) {
    const mark = MARKS[smallOnes.indexOf(point.cluster) % MARKS.length];
    drawing.append(svg("path", { class: "small-point", d: mark, transform: `translate(${point.x.toFixed(1)} ${point.y.toFixed(1)})` }));
  }

  const ring = svg("circle", { class: "ring", r: 8.5, visibility: "hidden" });
  drawing.append(ring);
  const point_at = (point) => {
    for (const image of figure.querySelectorAll(".members .thumb")) image.classList.toggle("lit", point !== undefined && Number(image.dataset.sample) === point.sample);
    ring.setAttribute("visibility", point ? "visible" : "hidden");
    if (point) ring.setAttribute("transform", `translate(${point.x} ${point.y})`);
  };
  drawing.addEventListener("pointermove", (pointer) => {
    const [x, y] = locate(drawing, pointer);
    const distance = (point) => Math.hypot(point.x - x, point.y - y);
    const nearest = points.reduce((best, point) => (!best || distance(point) < distance(best) ? point : best), undefined);
    if (!nearest || distance(nearest) > 24) return point_at(undefined), hideTooltip();
    point_at(nearest);
    const size = points.filter((point) => point.cluster === nearest.cluster).length;
    const lines = [`sample ${nearest.sample}`, className(nearest.sample), `${isSmall(nearest) ? "small cluster" : "cluster"} of ${size}`];
    showTooltip(pointer, thumb(nearest.sample), lines.filter(Boolean).join("\n"));
  });
  drawing.addEventListener("pointerleave", () => { point_at(undefined); hideTooltip(); });
  for (const image of figure.querySelectorAll(".members .thumb")) {
    image.onpointerenter = (pointer) => {
      const point = points.find(({ sample }) => sample === Number(image.dataset.sample));
      point_at(point);
      if (point) showTooltip(pointer, [`sample ${point.sample}`, className(point.sample)].filter(Boolean).join("\n"));
    };
    image.onpointerleave = () => { point_at(undefined); hideTooltip(); };
  }
  return drawing;
}

// --- Masks: the anomaly filters among random ones -----------------------------------------------------------------------

function drawMasking(width) {
  const lanes = report.masking;
  const laneHeight = 62, head = 12, foot = 46, left = 92, right = 24;
  const height = head + lanes.length * laneHeight + foot;
  const drawing = canvas(width, height, "Change of accuracy under each mask; the table below holds the values");
  const all = lanes.flatMap((lane) => [0, lane.anomalous, ...lane.random]).map((share) => 100 * share);
  const steps = ticks(extent(all), width < 500 ? 4 : 8, 0.1);
  const x = scale([steps[0], steps[steps.length - 1]], [left, width - right]);
  const bottom = height - foot;
  for (const value of steps) {
    const isZero = Math.abs(value) < 1e-9;
    drawing.append(svg("line", { class: isZero ? "axis" : "rule", x1: x(value), x2: x(value), y1: head, y2: bottom }));
    drawing.append(svg("text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, isZero ? "0" : signed(value)));
  }
  drawing.append(svg("text", { x: (left + width - right) / 2, y: bottom + 38, "text-anchor": "middle" }, "change of accuracy in points, against no mask"));
  lanes.forEach((lane, row) => {
    const middle = head + (row + 0.5) * laneHeight;
    drawing.append(svg("text", { class: "title", x: 0, y: middle + 4 }, lane.name));
    lane.random.forEach((share, i) => {
      const height = (((i * 0.618034) % 1) - 0.5) * 26;
      if (share !== null) drawing.append(svg("circle", { class: "swarm", cx: x(100 * share), cy: middle + height, r: 4 }));
    });
    const at = x(100 * lane.anomalous);
    drawing.append(svg("path", { class: "small-point", d: MARKS[0], transform: `translate(${at} ${middle}) scale(1.5)` }));
    drawing.append(svg("text", { class: "strong", x: at, y: middle - 18, "text-anchor": at > width - 60 ? "end" : "middle" }, signed(100 * lane.anomalous)));
  });
  return drawing;
}

if (report.training) drawAtWidth(document.getElementById("training-chart"), drawTraining);
if (report.masking) drawAtWidth(document.getElementById("masking-chart"), drawMasking);
for (const host of document.querySelectorAll(".scatter")) {
  const plot = report.plots[host.dataset.plot];
  drawAtWidth(host, (width) => drawScatter(plot, host.closest("figure"), width));
}
