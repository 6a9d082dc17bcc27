// Draws each figure when it comes near the screen, in the page's colours, and ties the dots to their images.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const variable = /^var\((--[\w-]+)\)$/;
const hosts = [...document.querySelectorAll("[data-figure]")];

function draw(host) {
  const inColours = (_, value) => (variable.test(value) ? colour(variable.exec(value)[1]) : value);
  const { data, layout } = JSON.parse(JSON.stringify(report.figures[host.dataset.figure]), inColours);
  layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom"; // a finger scrolls the page
  Plotly.react(host, data, layout, { displayModeBar: false, responsive: true });
  if (!host.dataset.drawn && host.closest(".cluster")) link(host, host.closest(".cluster"));
  host.dataset.drawn = true;
}

function link(host, figure) {
  const images = figure.querySelectorAll(".members .thumb"), preview = figure.querySelector(".preview");
  const show = (sample) => {
    for (const image of images) image.classList.toggle("lit", Number(image.dataset.sample) === sample);
    preview.className = sample === undefined ? "preview" : `preview thumb i${sample}`;
  };
  host.on("plotly_hover", ({ points }) => show(points[0].customdata));
  host.on("plotly_unhover", () => show());
  for (const image of images) {
    const sample = Number(image.dataset.sample);
    const curveNumber = host.data.findIndex(({ customdata }) => customdata.includes(sample));
    if (curveNumber < 0) continue;
    const pointNumber = host.data[curveNumber].customdata.indexOf(sample);
    image.onpointerenter = () => { Plotly.Fx.hover(host, [{ curveNumber, pointNumber }]); show(sample); };
    image.onpointerleave = () => { Plotly.Fx.unhover(host); show(); };
  }
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting && !target.dataset.drawn) draw(target);
}, { rootMargin: "600px" });
for (const host of hosts) near.observe(host);
matchMedia("(prefers-color-scheme: dark)").onchange = () => hosts.filter((host) => host.dataset.drawn).forEach(draw);
addEventListener("beforeprint", () => hosts.filter((host) => !host.dataset.drawn).forEach(draw));
