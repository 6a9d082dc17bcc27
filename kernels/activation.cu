// How strongly and how often filters are active: of each map its sum of absolute values, and whether a value is above 0.
//
// Twin: gmmcnn.featuremaps.activation.activation_statistics.
#include "common.cuh"

// One warp a map, grid ⌈F · N / warps⌉. The order of a sum depends on the number of pixels alone.
extern "C" __global__ void __launch_bounds__(MAX_THREADS) activation(
    const real* __restrict__ maps,  // (F, N, P)
    int n_maps,                     // F · N
    int n_pixels,                   // P
    double* __restrict__ strength,  // (F, N)
    bool* __restrict__ active)      // (F, N)
{
    int map = blockIdx.x * n_warps() + warp();
    if (map >= n_maps) return;
    maps += (size_t)map * n_pixels;
    double sum = 0;
    real largest = maps[0];
    for (int p = lane(); p < n_pixels; p += WARP) {
        sum += fabs((double)maps[p]);
        largest = max(largest, maps[p]);
    }
    sum = warp_sum(sum);
    largest = warp_max(largest);
    if (lane() == 0) strength[map] = sum, active[map] = largest > 0;
}
