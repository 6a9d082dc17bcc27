// Axes, lines and marks in SVG, in the page's colours by their CSS classes.

const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const scale = ([low, high], [from, to]) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

// Round numbers across a range, about so many.
function ticks(low, high, count) {
  const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9), found = [];
  for (let i = first; i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Round numbers from 0 to the first that is not below a value: an axis that everything lies on.
function ticksAbove(value, count) {
  const [first, second] = ticks(0, value, count), step = second - first;
  return Array.from({ length: 1 + Math.ceil(value / step - 1e-9) }, (_, i) => Number((i * step).toPrecision(12)));
}

const wholeTicks = (low, high, count) => ticks(low, high, count).filter(Number.isInteger);

function picture(host, height, label) {
  const width = Math.max(widthOf(host), 240);
  const canvas = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  host.replaceChildren(canvas);
  return { canvas, width, height };
}

// Grid lines and numbers of a vertical axis, and its name above it.
function verticalAxis({ values, at, left, right, name, format = String }) {
  const lines = values.flatMap((value) => [
    svg("line", { class: "grid-line", x1: left, x2: right, y1: at(value), y2: at(value) }),
    svg("text", { class: "tick", x: left - 8, y: at(value), dy: "0.32em", "text-anchor": "end" }, format(value)),
  ]);
  return svg("g", {}, ...lines, svg("text", { class: "axis-name", x: left, y: at(values.at(-1)) - 12 }, name));
}

function horizontalAxis({ values, at, y, name, middle, format = String }) {
  const numbers = values.map((value) => svg("text", { class: "tick", x: at(value), y: y + 16, "text-anchor": "middle" }, format(value)));
  return svg("g", {}, ...numbers, svg("text", { class: "axis-title", x: middle, y: y + 34, "text-anchor": "middle" }, name));
}

// A line through the points that have a value; marks on them where they are to be seen.
function curve(points, className, marks = false) {
  const known = points.filter(([, y]) => y !== null && Number.isFinite(y));
  const path = known.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const dots = marks ? known.map(([cx, cy]) => svg("circle", { cx, cy, r: 3.5, class: "dot" })) : [];
  return svg("g", { class: `curve ${className}` }, svg("path", { d: path }), ...dots);
}

const MARKS = { "◆": "M0 -7L7 0L0 7L-7 0Z", "▲": "M0 -6.5L6.5 5.5L-6.5 5.5Z", "■": "M-5 -5H5V5H-5Z", "▼": "M0 6.5L6.5 -5.5L-6.5 -5.5Z" };
