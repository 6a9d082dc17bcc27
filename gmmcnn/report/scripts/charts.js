// The course of training, the effect of masking, CH over the number of clusters, the scatter of one filter.

// Counts above accuracies over the same epochs. Points: { epoch, anomalous, perBatch }; returns where an epoch lies.
function drawTraining(host, metrics, points, chosen, choose) {
  const { canvas, width, height } = picture(host, 400, "Filters and accuracy over training");
  const left = 48, right = width - 16;
  const x = scale([Math.min(...metrics.epoch), Math.max(...metrics.epoch)], [left + 6, right - 6]);
  const counted = points.some(({ perBatch }) => perBatch !== null), measured = metrics.train_accuracy || metrics.validation_accuracy;
  const counts = { top: 36, bottom: measured ? 165 : 350 }, shares = { top: counted ? 225 : 36, bottom: 350 };
  if (counted) {
    const most = Math.max(4, ...points.flatMap((p) => [p.anomalous ?? 0, p.perBatch ?? 0]));
    const y = scale([0, most], [counts.bottom, counts.top]);
    canvas.append(verticalAxis({ values: wholeTicks(0, most, 4), at: y, left, right, name: "filters" }));
    canvas.append(curve(points.map((p) => [x(p.epoch), p.perBatch === null ? null : y(p.perBatch)]), "per-batch"));
    canvas.append(curve(points.map((p) => [x(p.epoch), p.anomalous === null ? null : y(p.anomalous)]), "anomalous", true));
  }
  if (measured) {
    const known = ["train_accuracy", "validation_accuracy"].flatMap((name) => metrics[name] ?? []).filter((value) => value !== null);
    const low = Math.floor(10 * Math.min(...known)) / 10, high = Math.ceil(10 * Math.max(...known)) / 10;
    const y = scale([low, high], [shares.bottom, shares.top]);
    canvas.append(verticalAxis({ values: ticks(low, high, 4), at: y, left, right, name: "accuracy", format: percent }));
    for (const name of ["train", "validation"]) {
      const values = metrics[`${name}_accuracy`] ?? [];
      canvas.append(curve(values.map((value, i) => [x(metrics.epoch[i]), value === null ? null : y(value)]), name));
    }
  }
  const range = [Math.min(...metrics.epoch), Math.max(...metrics.epoch)];
  canvas.append(horizontalAxis({ values: wholeTicks(...range, 8), at: x, y: 352, name: "epoch", middle: (left + right) / 2 }));
  if (chosen !== null) canvas.append(svg("line", { class: "cursor", x1: x(chosen), x2: x(chosen), y1: 24, y2: 350 }));
  canvas.onclick = (event) => {
    const at = ((event.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth) * width;
    const nearest = points.filter((p) => p.perBatch !== null).sort((a, b) => Math.abs(x(a.epoch) - at) - Math.abs(x(b.epoch) - at))[0];
    if (nearest) choose(nearest.epoch);
  };
}

function drawMasking(host, lanes) {
  const { canvas, width, height } = picture(host, 60 + 56 * lanes.length, "Change of accuracy under each mask");
  const changes = lanes.flatMap(({ anomalous, random }) => [0, anomalous, ...random]).filter((value) => value !== null).map((value) => 100 * value);
  const low = Math.min(...changes), high = Math.max(...changes), left = 86, right = width - 24;
  const x = scale([low, high], [left + 12, right]), bottom = height - 44;
  for (const value of ticks(low, high, 6)) canvas.append(svg("line", { class: value ? "grid-line" : "cursor", x1: x(value), x2: x(value), y1: 8, y2: bottom }));
  canvas.append(horizontalAxis({ values: ticks(low, high, 6), at: x, y: bottom, name: "change of accuracy in points, against no mask", middle: (left + right) / 2 }));
  lanes.forEach(({ name, anomalous, random }, lane) => {
    const y = 36 + 56 * lane;
    canvas.append(svg("text", { class: "lane", x: left - 8, y, dy: "0.32em", "text-anchor": "end" }, name));
    random.forEach((change, i) => change !== null && canvas.append(svg("circle", { class: "random", cx: x(100 * change), cy: y + 18 * (((i * 0.618034) % 1) - 0.5), r: 4 })));
    const points = 100 * anomalous, end = x(points) > right - 60;
    canvas.append(svg("path", { class: "small-mark", d: MARKS["◆"], transform: `translate(${x(points)} ${y})` }));
    canvas.append(svg("text", { class: "value", x: x(points) + (end ? -12 : 12), y: y - 14, "text-anchor": end ? "end" : "start" }, `${points > 0 ? "+" : ""}${points.toFixed(1)}`));
  });
}

// CH of every number of clusters tried, and the one that was chosen most often.
function drawIndex(host, values, chosen) {
  const known = values.map((value, i) => [report.kMin + i, value]).filter(([, value]) => Number.isFinite(value) && value < 1e30);
  if (!known.length) return host.replaceChildren(element("p", { className: "empty" }, "no finite index"));
  const { canvas, width } = picture(host, 150, `CH index by number of clusters; ${chosen} chosen most often`);
  const marks = ticksAbove(Math.max(1e-9, ...known.map(([, value]) => value)), 2), left = 48, right = width - 8;
  const x = scale([report.kMin, report.kMin + values.length - 1], [left + 8, right - 8]), y = scale([0, marks.at(-1)], [108, 26]);
  canvas.append(verticalAxis({ values: marks, at: y, left, right, name: "CH index", format: (value) => number(value) }));
  canvas.append(horizontalAxis({ values: wholeTicks(report.kMin, report.kMin + values.length - 1, 8), at: x, y: 108, name: "clusters", middle: (left + right) / 2 }));
  canvas.append(curve(known.map(([k, value]) => [x(k), y(value)]), "train", true));
  const best = known.find(([k]) => k === chosen);
  if (best) canvas.append(svg("circle", { class: "chosen", cx: x(best[0]), cy: y(best[1]), r: 6 }));
}

// Share of clusterings that flag a filter, epoch by epoch.
function drawShares(host, epochs, shares, frequency) {
  const { canvas, width } = picture(host, 150, "Share of clusterings that flag this filter, over training");
  const left = 48, right = width - 8, x = scale([epochs[0], epochs.at(-1)], [left + 8, right - 8]), y = scale([0, 1], [108, 26]);
  canvas.append(verticalAxis({ values: [0, 0.5, 1], at: y, left, right, name: "flagged", format: percent }));
  canvas.append(horizontalAxis({ values: wholeTicks(epochs[0], epochs.at(-1), 5), at: x, y: 108, name: "epoch", middle: (left + right) / 2 }));
  canvas.append(svg("line", { class: "cursor", x1: left, x2: right, y1: y(frequency), y2: y(frequency) }));
  canvas.append(curve(shares.map((share, i) => [x(epochs[i]), y(share)]), "anomalous", true));
}

// Dots of one clustering: { sample, x, y, cluster }, and what each cluster is: size, small.
function scatterOf(f) {
  if (!scatterOf.starts) {
    const sums = (counts) => counts.reduce((ends, count) => (ends.push(ends.at(-1) + count), ends), [0]);
    scatterOf.starts = sums(arrays["scatter.n_points"]);
    scatterOf.ellipses = sums(arrays["scatter.n_ellipses"]);
  }
  const repeats = nClusterings() / report.batches, clustering = arrays["scatter.clustering"][f];
  const batch = Math.floor(clustering / repeats), dots = [];
  let sample = -1;
  for (let i = scatterOf.starts[f]; i < scatterOf.starts[f + 1]; i++) {
    sample += arrays["scatter.step"][i];
    dots.push({ sample: batch * report.samplesPerBatch + sample, x: arrays["scatter.x"][i], y: arrays["scatter.y"][i], cluster: arrays["scatter.cluster"][i] });
  }
  const ellipses = [];
  for (let i = scatterOf.ellipses[f]; i < scatterOf.ellipses[f + 1]; i++) ellipses.push(Array.from(arrays["scatter.ellipses"].subarray(5 * i, 5 * i + 5), (value) => value / 64));
  const members = Map.groupBy ? Map.groupBy(dots, (dot) => dot.cluster) : dots.reduce((map, dot) => map.set(dot.cluster, [...(map.get(dot.cluster) ?? []), dot]), new Map());
  return { batch, repeat: clustering % repeats, dots, ellipses, members };
}

// Draw them; show(sample or null) where the pointer is, pick(samples) what a rectangle encloses.
function drawScatter(host, { dots, ellipses, members }, small, { height = 320, show, pick } = {}) {
  const { canvas, width } = picture(host, height, `Scatter of ${plural(dots.length, "sample")}`);
  const x = scale([0, 255], [14, width - 14]), y = scale([0, 255], [height - 14, 14]);
  for (const [cx, cy, xx, yx, yy] of ellipses) {
    const ring = Array.from({ length: 49 }, (_, i) => { const t = (i * Math.PI) / 24, c = 2 * Math.cos(t), s = 2 * Math.sin(t); return [x(cx + xx * c), y(cy + yx * c + yy * s)]; });
    canvas.append(svg("path", { class: "ellipse", d: `M${ring.map((point) => point.map((v) => v.toFixed(1)).join(" ")).join("L")}` }));
  }
  for (const dot of dots) if (!small.has(dot.cluster)) canvas.append(svg("circle", { class: `cloud k${dot.cluster % 10}`, cx: x(dot.x), cy: y(dot.y), r: height > 200 ? 3.2 : 2 }));
  [...small].forEach((cluster, turn) => {
    const d = Object.values(MARKS)[turn % 4];
    for (const dot of members.get(cluster) ?? []) canvas.append(svg("path", { class: "small-mark", d, transform: `translate(${x(dot.x)} ${y(dot.y)})` }));
  });
  if (!show) return;
  const lit = svg("circle", { class: "lit-dot", r: 9, visibility: "hidden" }), frame = svg("rect", { class: "brush", visibility: "hidden" });
  canvas.append(lit, frame);
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height]; };
  const light = (dot) => { lit.setAttribute("visibility", dot ? "visible" : "hidden"); if (dot) { lit.setAttribute("cx", x(dot.x)); lit.setAttribute("cy", y(dot.y)); } };
  let start = null;
  canvas.onpointerdown = (event) => { if (event.pointerType !== "touch") { start = at(event); canvas.setPointerCapture(event.pointerId); } };
  canvas.onpointermove = (event) => {
    const [px, py] = at(event);
    if (start) {
      for (const [key, value] of Object.entries({ x: Math.min(px, start[0]), y: Math.min(py, start[1]), width: Math.abs(px - start[0]), height: Math.abs(py - start[1]), visibility: "visible" })) frame.setAttribute(key, value);
      return;
    }
    const away = (dot) => (x(dot.x) - px) ** 2 + (y(dot.y) - py) ** 2;
    const nearest = dots.reduce((best, dot) => (best === null || away(dot) < away(best) ? dot : best), null);
    const near = nearest && away(nearest) < 24 ** 2 ? nearest : null;
    light(near); show(near);
  };
  canvas.onpointerleave = () => { if (!start) { light(null); show(null); } };
  canvas.onpointerup = (event) => {
    if (!start) return;
    const [px, py] = at(event), within = (value, a, b) => value >= Math.min(a, b) && value <= Math.max(a, b), [sx, sy] = start;
    start = null;
    frame.setAttribute("visibility", "hidden");
    const moved = Math.hypot(px - sx, py - sy) > 6;
    pick(moved ? dots.filter((dot) => within(x(dot.x), px, sx) && within(y(dot.y), py, sy)).map((dot) => dot.sample) : []);
  };
  return (sample) => light(dots.find((dot) => dot.sample === sample) ?? null);
}
