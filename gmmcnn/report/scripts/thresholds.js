// The sliders, each on the distribution of what it cuts, and what follows from where they stand.

const SLIDERS = {
  small_cluster: { symbol: "λ", name: "small cluster", unit: "samples at most", values: () => arrays.smallest_cluster, of: "smallest cluster" },
  min_small_clusters: { symbol: "α", name: "small clusters", unit: "at least" },
  ch_ratio: { symbol: "β", name: "separated", unit: "× the average CH", values: () => arrays.ch_over_average, of: "CH over the average" },
  activation_ratio: { symbol: "θ", name: "active", unit: "× the average activation", values: () => arrays.activation_over_average, of: "activation over the average" },
  min_frequency: { symbol: "", name: "frequency", unit: "of the clusterings", values: () => Float32Array.from(verdict.flagged, (count) => count / nClusterings()), of: "share of clusterings that flag" },
};
const THUMB = 12; // pixels, as in page.css: the middle of the slider's thumb is a value's place
let verdict; // of the epoch chosen, with the thresholds chosen

const shown = (name, place = state.at[name]) => (name === "min_frequency" ? percent(report.sliders[name][place]) : String(report.sliders[name][place]));

// Place of any number on a slider, between the places of its values.
function placeOf(values, number) {
  let low = 0, high = values.length - 1;
  if (!(number > values[0])) return 0;
  if (number >= values[high]) return high;
  while (high - low > 1) { const middle = (low + high) >> 1; if (values[middle] <= number) low = middle; else high = middle; }
  return low + (number - values[low]) / (values[high] - values[low]);
}

function buildSliders(host) {
  for (const [name, about] of Object.entries(SLIDERS)) {
    const values = report.sliders[name];
    const input = element("input", { type: "range", id: `slider-${name}`, min: 0, max: values.length - 1, step: 1, value: state.at[name], disabled: values.length < 2 });
    const output = element("output", { "for": input.id });
    const canvas = about.values ? element("canvas", { "aria-hidden": "true" }) : null;
    const label = element("label", { "for": input.id }, element("b", {}, `${about.symbol} ${about.name}`.trim()), " ", output, ` ${about.unit}`);
    const ends = element("span", { className: "ends", "aria-hidden": "true" }, element("span", {}, shown(name, 0)), element("span", {}, about.of ?? ""), element("span", {}, shown(name, values.length - 1)));
    host.append(element("div", { className: "slider" }, label, element("div", { className: "strip" }, canvas ?? "", input), ends));
    input.oninput = () => choose({ at: { ...state.at, [name]: Number(input.value) }, page: 0 });
    Object.assign(about, { input, output, canvas });
  }
  byId("reset").onclick = () => choose({ at: { ...initial.at }, page: 0 });
  byId("copy").onclick = async () => {
    try {
      await navigator.clipboard.writeText(byId("command").textContent);
      byId("copied").textContent = "copied";
    } catch {
      getSelection().selectAllChildren(byId("command"));
      byId("copied").textContent = "selected: copy it with the keyboard";
    }
  };
}

function drawSliders() {
  for (const [name, { input, output }] of Object.entries(SLIDERS)) {
    input.value = state.at[name];
    input.setAttribute("aria-valuetext", shown(name));
    output.textContent = shown(name);
  }
  const dirty = moved();
  byId("reset").disabled = !dirty.length;
  byId("moved").hidden = !dirty.length;
  byId("command").textContent = commandLine(dirty);
  byId("copied").textContent = "";
}

// What screens the same fits with the thresholds chosen.
function commandLine(names) {
  const given = names.map((name) => [name, report.sliders[name][state.at[name]]]);
  if (report.command) return [report.command, ...given.map(([name, value]) => `screen.${name}=${value}`)].join(" ");
  return `analysis.screen(${given.map(([name, value]) => `${name}=${value}`).join(", ")})`;
}

// One dot for each filter that can be judged, a row for each layer; anomalous ones in front.
function drawStrips() {
  const page = getComputedStyle(document.documentElement), [ordinary, accent] = ["--live", "--accent"].map((name) => page.getPropertyValue(name));
  const drawn = Object.entries(SLIDERS).filter(([, { canvas }]) => canvas), width = widthOf(drawn[0][1].canvas);
  if (!width) return void requestAnimationFrame(drawStrips); // the browser has not laid the page out yet
  const rowHeight = clamp(90 / report.layers.length, 1.2, 22), height = Math.max(26, rowHeight * report.layers.length), sharp = devicePixelRatio || 1;
  const size = clamp(rowHeight / 4, 1, 3);
  for (const [name, about] of drawn) {
    const { canvas } = about, slider = report.sliders[name], wide = (width - THUMB) / (slider.length - 1 || 1);
    const follows = name === "min_frequency", key = [width, ordinary, state.epoch].join();
    const dots = (target, colour, chosen) => {
      const pen = target.getContext("2d");
      pen.setTransform(sharp, 0, 0, sharp, 0, 0);
      pen.fillStyle = colour;
      for (let f = 0; f < about.places.length; f++) {
        if (!chosen(f) || Number.isNaN(about.places[f])) continue;
        const jitter = ((f * 0.618034) % 1) * (rowHeight - 2 * size);
        pen.fillRect(THUMB / 2 + wide * about.places[f] - size, arrays.layer[f] * rowHeight + jitter, 2 * size, 2 * size);
      }
    };
    Object.assign(canvas, { width: width * sharp, height: height * sharp });
    canvas.style.height = `${height}px`;
    if (!follows && state.epoch !== initial.epoch) continue; // these are known of the last epoch only
    if (follows || !about.places) about.places = about.values().map((value) => (Number.isNaN(value) ? value : placeOf(slider, value)));
    if (follows || about.key !== key) { // all of them: drawn once, and copied where they do not move
      about.all = Object.assign(document.createElement("canvas"), { width: width * sharp, height: height * sharp });
      about.key = key;
      dots(about.all, ordinary, (f) => isLive(f));
    }
    canvas.getContext("2d").drawImage(about.all, 0, 0);
    dots(canvas, accent, (f) => verdict.anomalous[f]);
  }
}

function drawCounts() {
  const nLive = arrays.filter.reduce((sum, _, f) => sum + isLive(f), 0);
  byId("n-anomalous").textContent = whole(verdict.nAnomalous);
  byId("n-live").textContent = `of ${plural(nLive, "live filter")}`;
  byId("verdict").textContent = `${plural(verdict.nAnomalous, "anomaly filter")} of ${whole(nLive)} live; ${number(verdict.perBatch)} flagged per clustering`;
  const rows = report.layers.map(() => ({ total: 0, live: 0, anomalous: 0 }));
  for (let f = 0; f < nFilters(); f++) {
    const row = rows[arrays.layer[f]];
    row.total++; row.live += isLive(f); row.anomalous += verdict.anomalous[f];
  }
  document.querySelectorAll("#layers tbody tr").forEach((line, i) => {
    const { total, live, anomalous } = rows[i];
    [anomalous, live - anomalous, total - live].forEach((share, part) => { line.querySelectorAll(".bar span")[part].style.flexGrow = share; });
    line.querySelector(".share").replaceChildren(element("b", {}, whole(anomalous)), ` of ${whole(live)} live`);
  });
}

// Counts at every epoch: with the thresholds chosen where the page knows enough, else as they were written.
function course() {
  const { metrics } = report;
  const follows = report.epochs.length > 1;
  const counted = new Map(follows ? report.epochs.map((epoch, e) => [epoch, screened(e, state.at)]) : []);
  return metrics.epoch.map((epoch, i) => {
    const now = counted.get(epoch);
    if (follows) return { epoch, anomalous: now?.nAnomalous ?? null, perBatch: now?.perBatch ?? null };
    return { epoch, anomalous: metrics.anomalous_filters?.[i] ?? null, perBatch: metrics.flagged_per_batch?.[i] ?? null };
  });
}

function drawCourse() {
  const host = byId("training-chart");
  if (!host) return;
  const scrubbed = report.epochs.length > 1;
  const chosen = scrubbed ? report.epochs[state.epoch] : null, points = course();
  drawTraining(host, report.metrics, points, chosen, (epoch) => scrubbed && choose({ epoch: report.epochs.indexOf(epoch) }));
  if (!scrubbed) return;
  const now = points.find(({ epoch }) => epoch === chosen), row = report.metrics.epoch.indexOf(chosen);
  const share = (name) => (report.metrics[name]?.[row] == null ? "–" : `${(100 * report.metrics[name][row]).toFixed(1)} %`);
  byId("epoch").value = state.epoch;
  byId("epoch").setAttribute("aria-valuetext", `epoch ${chosen}`);
  byId("at-epoch").textContent = `epoch ${chosen}: ${plural(now?.anomalous ?? 0, "anomaly filter")}, ${number(now?.perBatch ?? null)} flagged per clustering; training accuracy ${share("train_accuracy")}, validation ${share("validation_accuracy")}`;
}

function buildScrubber() {
  const host = byId("scrubber");
  if (!host) return;
  host.hidden = report.epochs.length < 2;
  byId("epoch").max = report.epochs.length - 1;
  byId("epoch").oninput = () => choose({ epoch: Number(byId("epoch").value), page: 0 });
}
