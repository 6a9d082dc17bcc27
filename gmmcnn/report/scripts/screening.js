// The criteria, as in gmmcnn/filters/screening.py, over ranks in place of values (gmmcnn/report/thresholds.py).

const ALPHAS = report.sliders.min_small_clusters.length;
const COMPONENTS_OF = { unbalanced: "small_cluster", separated: "ch_ratio", active: "activation_ratio" };
const isLive = (f, epoch = state.epoch) => arrays.live[epoch * nFilters() + f] === 1;
const nameOf = (f) => `${report.layers[arrays.layer[f]]}:${arrays.filter[f]}`;
const nFilters = () => arrays.filter.length;
const nClusterings = () => report.arrays.ranks.shape[3];

// One plane of ranks (F, M) of an epoch: sizes of the α-th smallest cluster, then CH, then activation.
function plane(epoch, which) {
  const [, planes, filters, clusterings] = report.arrays.ranks.shape;
  const size = filters * clusterings, first = (epoch * planes + which) * size;
  return arrays.ranks.subarray(first, first + size);
}

// In how many clusterings of each filter each criterion holds, and all of them: the flags.
function screened(epoch, at) {
  const smallest = plane(epoch, at.min_small_clusters), separated = plane(epoch, ALPHAS), active = plane(epoch, ALPHAS + 1);
  const { small_cluster: lambda, ch_ratio: beta, activation_ratio: theta } = at;
  const n = nFilters(), m = nClusterings();
  const counts = { unbalanced: new Uint16Array(n), separated: new Uint16Array(n), active: new Uint16Array(n), flagged: new Uint16Array(n) };
  let flags = 0;
  for (let f = 0, i = 0; f < n; f++) {
    let first = 0, second = 0, third = 0, all = 0;
    for (const end = i + m; i < end; i++) {
      const a = smallest[i] <= lambda, b = separated[i] > beta, c = active[i] > theta;
      first += a; second += b; third += c; all += a && b && c;
    }
    counts.unbalanced[f] = first; counts.separated[f] = second; counts.active[f] = third; counts.flagged[f] = all;
    flags += all;
  }
  const often = (count) => count / m >= report.sliders.min_frequency[at.min_frequency];
  const anomalous = Array.from(counts.flagged, (count, f) => isLive(f, epoch) && often(count));
  return { ...counts, often, anomalous, nAnomalous: anomalous.filter(Boolean).length, perBatch: flags / m };
}

// Ends of the 95 % interval (Wilson) of a share of batches.
function interval(share) {
  const z2 = 1.96 ** 2, n = report.batches, centre = share + z2 / (2 * n), scale = 1 + z2 / n;
  const half = Math.sqrt((z2 * (share * (1 - share) + z2 / (4 * n))) / n);
  return [clamp((centre - half) / scale, 0, share), clamp((centre + half) / scale, share, 1)];
}

// Where a filter's verdict changes when one slider alone moves: [slider, from which value on, "up" or "down" anomalous].
function turningPoints(f, epoch, at) {
  const m = nClusterings(), frequency = report.sliders.min_frequency[at.min_frequency];
  let needed = 0;
  while (needed / m < frequency) needed++;
  const rows = { unbalanced: plane(epoch, at.min_small_clusters), separated: plane(epoch, ALPHAS), active: plane(epoch, ALPHAS + 1) };
  const holds = { unbalanced: (rank) => rank <= at.small_cluster, separated: (rank) => rank > at.ch_ratio, active: (rank) => rank > at.activation_ratio };
  return Object.entries(COMPONENTS_OF).map(([criterion, slider]) => {
    const others = Object.keys(rows).filter((name) => name !== criterion), ranks = [];
    for (let i = f * m; i < (f + 1) * m; i++) if (others.every((name) => holds[name](rows[name][i]))) ranks.push(rows[criterion][i]);
    const upwards = criterion === "unbalanced"; // anomalous from a value on, else up to it
    ranks.sort((a, b) => (upwards ? a - b : b - a));
    const place = ranks.length < needed ? undefined : upwards ? ranks[needed - 1] : ranks[needed - 1] - 1;
    const values = report.sliders[slider];
    return { slider, upwards, value: place === undefined ? undefined : values[place], extreme: !upwards && place === values.length - 1 };
  });
}
