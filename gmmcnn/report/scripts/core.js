// What everything else is made with: the report's data, elements, numbers as text, images.

const report = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
let arrays; // by name, filled by unpack()

async function unpack() {
  const text = atob(byId("arrays").textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const typed = ({ type, offset, length }) => new globalThis[type](buffer, offset, length);
  arrays = Object.fromEntries(Object.entries(report.arrays).map(([name, entry]) => [name, typed(entry)]));
}

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) key.startsWith("aria-") || key.startsWith("data-") || key === "role" || key === "for" ? node.setAttribute(key, value) : (node[key] = value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const wholeFormat = new Intl.NumberFormat("en"), shortFormat = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const whole = (value) => wholeFormat.format(value);
const plural = (count, noun, several = `${noun}s`) => `${whole(count)} ${count === 1 ? noun : several}`;
const percent = (share) => `${Math.round(100 * share)} %`;

function number(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (value > 1e30) return "∞";
  return Math.abs(value) >= 1e6 ? value.toExponential(1) : shortFormat.format(value);
}

// Width that an element has on the page: asked for once, as asking makes the browser lay the page out.
function widthOf(host) {
  const known = widthOf.known.get(host) || host.clientWidth;
  widthOf.known.set(host, known);
  return known;
}
widthOf.known = new Map();

// The image of a probe sample; an empty frame where the page has no room for it.
function thumb(sample, about = "") {
  const place = thumb.places.get(sample);
  const label = `probe sample ${sample}${className(sample) ? `, ${className(sample)}` : ""}${about}`;
  const image = element("span", { className: place === undefined ? "thumb" : "thumb pictured", role: "img", "aria-label": label, title: label, "data-sample": sample });
  if (place !== undefined) image.style.cssText = framed(place);
  return image;
}

function framed(place) {
  const { columns, rows } = report.sheet;
  const share = (index, count) => (count > 1 ? (100 * index) / (count - 1) : 0);
  const x = share(place % columns, columns), y = share(Math.floor(place / columns), rows);
  return `background-size:${100 * columns}% ${100 * rows}%;background-position:${x}% ${y}%`;
}

function className(sample) {
  const target = arrays.targets[sample] ?? -1;
  return target < 0 ? "" : (report.classNames?.[target] ?? `class ${target}`);
}
