// Calinski-Harabasz index of many clusterings of many filters, and the choice of K by it.
//
// Twins: gmmcnn.mixture.calinski_harabasz.calinski_harabasz and choose_n_components.
#include "common.cuh"

// One block a clustering, grid (F, n_labellings). A warp finds the size and mean of one cluster after the other, then
// the squared offsets from it.
extern "C" __global__ void __launch_bounds__(MAX_THREADS) calinski_harabasz(
    const real* __restrict__ points,         // (F, D, N), centred
    const signed char* __restrict__ labels,  // (F, n_labellings, N), all -1 for a clustering that does not exist
    int k_max,                               // labels are below it
    int n_samples,                           // N
    double precision,                        // distance of 1 from the next number, at the precision of the data
    double* __restrict__ index)              // (F, n_labellings), infinite where perfectly separated, NaN where undefined
{
    __shared__ double sizes[MAX_COMPONENTS], means[MAX_COMPONENTS][D], spreads[MAX_COMPONENTS][D];
    size_t clustering = (size_t)blockIdx.x * gridDim.y + blockIdx.y;
    points += (size_t)blockIdx.x * D * n_samples;
    labels += clustering * n_samples;
    if (labels[0] < 0) {
        if (threadIdx.x == 0) index[clustering] = undefined();
        return;
    }

    for (int k = warp(); k < k_max; k += n_warps()) {
        double size = 0, sums[D] = {};
        for (int n = lane(); n < n_samples; n += WARP) {
            if (labels[n] != k) continue;
            size += 1;
#pragma unroll
            for (int j = 0; j < D; j++) sums[j] += points[(size_t)j * n_samples + n];
        }
        size = warp_sum(size);
#pragma unroll
        for (int j = 0; j < D; j++) {
            sums[j] = warp_sum(sums[j]);
            if (lane() == 0) means[k][j] = sums[j] / max(size, 1.0);
        }
        if (lane() == 0) sizes[k] = size;
    }
    __syncthreads();

    for (int k = warp(); k < k_max; k += n_warps()) {
        double sums[D] = {};
        for (int n = lane(); n < n_samples; n += WARP) {
            if (labels[n] != k) continue;
#pragma unroll
            for (int j = 0; j < D; j++) {
                double offset = points[(size_t)j * n_samples + n] - means[k][j];
                sums[j] += offset * offset;
            }
        }
#pragma unroll
        for (int j = 0; j < D; j++) {
            sums[j] = warp_sum(sums[j]);
            if (lane() == 0) spreads[k][j] = sums[j];
        }
    }
    __syncthreads();
    if (threadIdx.x > 0) return;

    double centre[D] = {}, within = 0, between = 0, rounding = 0;
    int n_clusters = 0;
    for (int k = 0; k < k_max; k++) {
        n_clusters += sizes[k] > 0;
        for (int j = 0; j < D; j++) centre[j] += sizes[k] * means[k][j] / n_samples;
    }
    bool perfect = true;
    for (int k = 0; k < k_max; k++)
        for (int j = 0; j < D; j++) {
            double distance = sizes[k] * (means[k][j] - centre[j]) * (means[k][j] - centre[j]);
            double least = CH_ROUNDING * precision * (CH_ROUNDING * precision) * (spreads[k][j] + distance);
            perfect = perfect && spreads[k][j] <= least;
            within += spreads[k][j], between += distance, rounding += least;
        }
    bool defined = n_clusters > 1 && n_clusters < n_samples && between > rounding;
    double ratio = between * (n_samples - n_clusters) / (within * (n_clusters - 1));
    index[clustering] = !defined ? undefined() : perfect ? infinity() : ratio;
}

// One thread a filter: K of the largest index, the smallest K where indices tie, 0 where none is defined.
extern "C" __global__ void __launch_bounds__(MAX_THREADS) choose_n_components(
    const double* __restrict__ index,  // (F, n_k)
    int k_min,
    int n_k,
    int n_filters,                   // F
    int* __restrict__ n_components)  // (F,)
{
    int f = blockIdx.x * blockDim.x + threadIdx.x;
    if (f >= n_filters) return;
    index += (size_t)f * n_k;
    double best = -infinity();
    for (int i = 0; i < n_k; i++) best = index[i] > best ? index[i] : best;  // false for NaN
    int chosen = 0;
    for (int i = n_k - 1; i >= 0; i--) chosen = index[i] >= best * (1 - CH_TIE) ? k_min + i : chosen;
    n_components[f] = chosen;
}
