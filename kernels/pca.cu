// The leading principal components of many filters' maps by subspace iteration, every filter on its own.
//
// A filter's maps X are (N, P). From an orthonormal basis V (P, M) one round computes, with X scaled and centred as it is read,
//     Y = X V  (project),   Z = Xᵀ Y  (backproject),   and from YᵀY = Q Λ Qᵀ  (rotate)
// the Ritz vectors V Q, their residuals Z Q − V Q Λ, the scores Y Q, and the next basis, which spans Z. The two passes read
// the maps once each, at the speed of memory; all else is small. A filter whose leading residuals are small is done and
// skipped from then on, so that its result does not depend on its neighbours. M exceeds the number of components wanted,
// for speed of convergence.
//
// Twin: gmmcnn.principal_components.pca (engine="reference"), a singular value decomposition.
#include "common.cuh"

#ifndef COLUMNS
#define COLUMNS 8
#endif

constexpr int M = COLUMNS;   // columns of the basis: 8, 12 or 16
constexpr int ROWS = 4;      // samples that a warp projects at once
constexpr int CHUNK = 1024;  // samples that backproject adds up in `real`
constexpr int JACOBI_SWEEPS = 12;
constexpr double JACOBI_TOL = 1e-30;      // of an off-diagonal entry squared, relative to its two diagonal entries
constexpr double MIN_EIGENVALUE = 1e-13;  // relative to the largest: what is below is rounding
constexpr double MIN_PIVOT = 1e-13;       // of columns of length 1: below they depend on each other

// Mean of every pixel over the samples, scaled, as the sum of two numbers: what rounding takes from the first is the second.
// A pixel that does not vary has its own value as mean, exactly. One thread a pixel, grid (⌈P / threads⌉, F).
extern "C" __global__ void __launch_bounds__(MAX_THREADS) column_means(
    const real* __restrict__ maps,   // (F, N, P)
    const real* __restrict__ scale,  // (F,) power of two that brings the largest of the maps to about 1
    int n_samples,                   // N
    int n_pixels,                    // P
    real* __restrict__ means,        // (F, P)
    real* __restrict__ rounding)     // (F, P)
{
    int p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= n_pixels) return;
    maps += (size_t)blockIdx.y * n_samples * n_pixels + p;
    double sum = 0, factor = scale[blockIdx.y];
    bool varies = false;
#pragma unroll 8
    for (int n = 0; n < n_samples; n++) {
        real x = maps[(size_t)n * n_pixels];
        sum += x * factor;
        varies = varies || x != maps[0];
    }
    double mean = varies ? sum / n_samples : maps[0] * factor;
    means[(size_t)blockIdx.y * n_pixels + p] = mean;
    rounding[(size_t)blockIdx.y * n_pixels + p] = mean - (double)(real)mean;
}

// A number of the maps, scaled, less the mean.
__device__ inline real centred(real x, real scale, real mean, real rounding) { return fma(x, scale, -mean) - rounding; }

// Y = X V, X scaled and centred. One warp for ROWS samples, grid (⌈N / (ROWS · warps)⌉, F).
extern "C" __global__ void __launch_bounds__(MAX_THREADS) project(
    const real* __restrict__ maps,      // (F, N, P)
    const real* __restrict__ scale,     // (F,)
    const real* __restrict__ means,     // (F, P)
    const real* __restrict__ rounding,  // (F, P)
    const real* __restrict__ basis,     // (F, P, M)
    const bool* __restrict__ done,      // (F,)
    int n_samples,                      // N
    int n_pixels,                       // P
    real* __restrict__ projected)       // (F, N, M)
{
    int first = (blockIdx.x * n_warps() + warp()) * ROWS;
    if (done[blockIdx.y] || first >= n_samples) return;
    real factor = scale[blockIdx.y];
    means += (size_t)blockIdx.y * n_pixels;
    rounding += (size_t)blockIdx.y * n_pixels;
    basis += (size_t)blockIdx.y * n_pixels * M;
    const real* rows[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        rows[r] = maps + ((size_t)blockIdx.y * n_samples + min(first + r, n_samples - 1)) * n_pixels;

    real sums[ROWS * M] = {};
    for (int p = lane(); p < n_pixels; p += WARP) {
        real v[M];
#pragma unroll
        for (int j = 0; j < M; j++) v[j] = basis[(size_t)p * M + j];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            real x = centred(rows[r][p], factor, means[p], rounding[p]);
#pragma unroll
            for (int j = 0; j < M; j++) sums[r * M + j] = fma(x, v[j], sums[r * M + j]);
        }
    }
    projected += ((size_t)blockIdx.y * n_samples + first) * M;
    int n_totals = min(ROWS, n_samples - first) * M;
#pragma unroll
    for (int start = 0; start < ROWS * M; start += 16) {
        real part[16];
#pragma unroll
        for (int i = 0; i < 16; i++) part[i] = sums[start + i];
        real total = warp_totals(part);
        if (lane() < 16 && start + lane() < n_totals) projected[start + lane()] = total;
    }
}

// Z = (X − mean)ᵀ Y over the samples of one chunk. One thread a pixel, grid (⌈P / threads⌉, chunks, F).
extern "C" __global__ void __launch_bounds__(MAX_THREADS) backproject(
    const real* __restrict__ maps,       // (F, N, P)
    const real* __restrict__ scale,      // (F,)
    const real* __restrict__ means,      // (F, P)
    const real* __restrict__ rounding,   // (F, P)
    const real* __restrict__ projected,  // (F, N, M), or (N, M) for all filters where `shared_by_filters`
    const bool* __restrict__ done,       // (F,)
    int n_samples,                       // N
    int n_pixels,                        // P
    bool shared_by_filters,
    real* __restrict__ partial)  // (F, chunks, P, M)
{
    int f = blockIdx.z, p = blockIdx.x * blockDim.x + threadIdx.x;
    if (done[f] || p >= n_pixels) return;
    int start = blockIdx.y * CHUNK, end = min(start + CHUNK, n_samples);
    maps += (size_t)f * n_samples * n_pixels + p;
    projected += shared_by_filters ? 0 : (size_t)f * n_samples * M;
    real factor = scale[f], mean = means[(size_t)f * n_pixels + p], lost = rounding[(size_t)f * n_pixels + p];
    real sums[M] = {};
#pragma unroll 4
    for (int n = start; n < end; n++) {
        real x = centred(maps[(size_t)n * n_pixels], factor, mean, lost);
#pragma unroll
        for (int j = 0; j < M; j++) sums[j] = fma(x, projected[(size_t)n * M + j], sums[j]);
    }
    partial += (((size_t)f * gridDim.y + blockIdx.y) * n_pixels + p) * M;
#pragma unroll
    for (int j = 0; j < M; j++) partial[j] = sums[j];
}

// What the threads of a block of `rotate` share.
struct Small {
    double gram[M][M];      // YᵀY, later WᵀW and its Cholesky factor
    double rotation[M][M];  // Q, columns by falling eigenvalue, later the inverse of the factor, transposed
    double eigenvalues[M];
    double lengths[M];
    double slices[MAX_THREADS];
    double scratch[MAX_THREADS / WARP];
};
__shared__ Small small;

// small.gram = AᵀA of a matrix (n_rows, M). A thread serves one pair of columns, where threads are many a slice of rows.
__device__ inline void gram(const real* matrix, int n_rows) {
    int n_slices = max(1, (int)blockDim.x / (M * M));
    for (int item = threadIdx.x; item < M * M * n_slices; item += blockDim.x) {
        int i = item % (M * M) / M, j = item % M;
        double sum = 0;
        for (int row = item / (M * M); row < n_rows; row += n_slices)
            sum += (double)matrix[(size_t)row * M + i] * matrix[(size_t)row * M + j];
        if (n_slices == 1) small.gram[i][j] = sum;
        else small.slices[item] = sum;
    }
    __syncthreads();
    if (n_slices == 1) return;
    for (int pair = threadIdx.x; pair < M * M; pair += blockDim.x) {
        double sum = 0;
        for (int slice = 0; slice < n_slices; slice++) sum += small.slices[slice * M * M + pair];
        small.gram[pair / M][pair % M] = sum;
    }
    __syncthreads();
}

// Cyclic Jacobi by the first warp, lane i serving row and column i: small.gram = Q Λ Qᵀ.
__device__ inline void diagonalise() {
    int i = lane();
    if (i < M)
        for (int j = 0; j < M; j++) small.rotation[i][j] = i == j;
    __syncwarp();
    for (int sweep = 0; sweep < JACOBI_SWEEPS; sweep++) {
        bool rotated = false;
        for (int p = 0; p < M; p++)
            for (int q = p + 1; q < M; q++) {
                double pp = small.gram[p][p], qq = small.gram[q][q], pq = small.gram[p][q];
                __syncwarp();
                if (pq * pq <= JACOBI_TOL * fabs(pp * qq)) continue;
                rotated = true;
                double theta = (qq - pp) / (2 * pq);
                double t = (theta < 0 ? -1.0 : 1.0) / (fabs(theta) + sqrt(theta * theta + 1));
                double cosine = 1 / sqrt(t * t + 1), sine = t * cosine;
                if (i < M && i != p && i != q) {
                    double ip = small.gram[i][p], iq = small.gram[i][q];
                    small.gram[i][p] = small.gram[p][i] = cosine * ip - sine * iq;
                    small.gram[i][q] = small.gram[q][i] = sine * ip + cosine * iq;
                }
                if (i < M) {
                    double ip = small.rotation[i][p], iq = small.rotation[i][q];
                    small.rotation[i][p] = cosine * ip - sine * iq;
                    small.rotation[i][q] = sine * ip + cosine * iq;
                }
                if (i == 0) {
                    small.gram[p][p] = pp - t * pq;
                    small.gram[q][q] = qq + t * pq;
                    small.gram[p][q] = small.gram[q][p] = 0;
                }
                __syncwarp();
            }
        if (!rotated) break;
    }
    int rank = 0;  // of this lane's eigenvalue
    for (int j = 0; j < M && i < M; j++) {
        double other = small.gram[j][j], own = small.gram[i][i];
        rank += other > own || (other == own && j < i);
    }
    if (i < M) small.eigenvalues[rank] = max(small.gram[i][i], 0.0);
    for (int j = 0; j < M && i < M; j++) small.slices[j * M + rank] = small.rotation[j][i];
    __syncwarp();
    for (int j = 0; j < M && i < M; j++) small.rotation[j][i] = small.slices[j * M + i];
}

// small.rotation = (L⁻¹)ᵀ with small.gram = L Lᵀ, by the first warp; a column that depends on earlier ones becomes zero.
__device__ inline void orthonormalise() {
    int i = lane();
    for (int j = 0; j < M; j++) {  // lane i takes row i of L, in place
        double value = 0;
        if (i < M && i >= j) {
            value = small.gram[i][j];
            for (int m = 0; m < j; m++) value -= small.gram[i][m] * small.gram[j][m];
        }
        double pivot = __shfl_sync(ALL_LANES, value, j);
        pivot = pivot > MIN_PIVOT ? sqrt(pivot) : 0;
        if (i < M && i >= j) small.gram[i][j] = i == j ? pivot : pivot > 0 ? value / pivot : 0;
        __syncwarp();
    }
    for (int j = 0; j < M && i < M; j++) {  // lane i takes column i of L⁻¹
        double value = i == j;
        for (int m = i; m < j; m++) value -= small.gram[j][m] * small.rotation[i][m];
        small.rotation[i][j] = j >= i && small.gram[j][j] > 0 ? value / small.gram[j][j] : 0;
    }
}

// Entry `column` of a row (M,) times small.rotation.
__device__ inline double rotated(const real* row, int column) {
    double sum = 0;
#pragma unroll
    for (int j = 0; j < M; j++) sum += row[j] * small.rotation[j][column];
    return sum;
}

// Sums over the block of one number a thread, thread t contributing to column t % M. Begins and ends with a barrier.
__device__ inline void column_sums(double x, double* sums) {
    __syncthreads();
    small.slices[threadIdx.x] = x;
    __syncthreads();
    if (threadIdx.x < M) {
        double sum = 0;
        for (int t = threadIdx.x; t < blockDim.x; t += M) sum += small.slices[t];
        sums[threadIdx.x] = sum;
    }
    __syncthreads();
}

// Scores Y Q of component i, with the sign that makes the largest entry of its Ritz vector, the first of several, positive.
__device__ inline void write_scores(
    const real* projected, const real* basis, int n_samples, int n_pixels, int n_components, int i, real* scores) {
    double size = -1, sign = 1;
    int where = n_pixels;
    for (int p = threadIdx.x; p < n_pixels; p += blockDim.x) {
        double entry = rotated(basis + (size_t)p * M, i);
        if (fabs(entry) > size) size = fabs(entry), sign = entry < 0 ? -1 : 1, where = p;
    }
    bool is_largest = size == block_max(size, small.scratch);
    double first = -block_max(is_largest ? -where : -n_pixels, small.scratch);
    sign = block_max(is_largest && where == first ? sign : -2.0, small.scratch);
    for (int n = threadIdx.x; n < n_samples; n += blockDim.x)
        scores[(size_t)n * n_components + i] = sign * rotated(projected + (size_t)n * M, i);
}

// One block a filter, its threads a multiple of M: Ritz values and residuals from Y, V and Z, and then the scores, where
// these residuals are small, or the next basis. In the first round there is no V yet and the basis is all that is made.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) rotate(
    const real* __restrict__ projected,  // (F, N, M) Y
    real* __restrict__ partial,          // (F, chunks, P, M) Z by chunks; the first becomes Z
    int n_samples,                       // N
    int n_pixels,                        // P
    int n_chunks,
    int n_components,  // d
    double tol,        // of the residuals
    bool is_first,
    real* __restrict__ basis,       // (F, P, M) V
    real* __restrict__ image,       // (F, P, M) work space
    bool* __restrict__ done,        // (F,)
    double* __restrict__ variance,  // (F, d)
    double* __restrict__ residual,  // (F,) largest ‖C v − λ v‖ / λ_1
    real* __restrict__ scores)      // (F, N, d)
{
    size_t f = blockIdx.x;
    if (done[f]) return;
    projected += f * n_samples * M;
    partial += f * n_chunks * n_pixels * M;
    basis += f * n_pixels * M;
    image += f * n_pixels * M;
    int column = threadIdx.x % M, n_rows = blockDim.x / M;
    for (int chunk = 1; chunk < n_chunks; chunk++)
        for (int item = threadIdx.x; item < n_pixels * M; item += blockDim.x)
            partial[item] += partial[(size_t)chunk * n_pixels * M + item];
    if (is_first) {
        for (int item = threadIdx.x; item < M * M; item += blockDim.x)
            small.rotation[item / M][item % M] = item / M == item % M;
        __syncthreads();
    } else {
        gram(projected, n_samples);
        if (warp() == 0) diagonalise();
        __syncthreads();
    }

    double error = 0, length = 0;
    for (int p = threadIdx.x / M; p < n_pixels; p += n_rows) {
        double z = rotated(partial + (size_t)p * M, column);  // Z Q
        double distance = is_first ? 0 : z - small.eigenvalues[column] * rotated(basis + (size_t)p * M, column);
        error += distance * distance;
        length += z * z;
        image[(size_t)p * M + column] = z;
    }
    column_sums(length, small.lengths);
    if (!is_first) {
        column_sums(column < n_components ? error : 0, small.gram[0]);
        double largest = 0, leading = small.eigenvalues[0];
        for (int i = 0; i < n_components; i++) largest = max(largest, sqrt(small.gram[0][i]));
        largest = leading == 0 ? 0 : largest / leading;  // NaN stays NaN, which is not small
        if (threadIdx.x == 0) residual[f] = largest;
        int i = threadIdx.x;
        if (i < n_components) variance[f * n_components + i] = small.eigenvalues[i] / max(n_samples - 1, 1);
        if (largest <= tol) {
            for (int i = 0; i < n_components; i++)
                write_scores(projected, basis, n_samples, n_pixels, n_components, i, scores + f * n_samples * n_components);
            if (threadIdx.x == 0) done[f] = true;
            return;
        }
        __syncthreads();
    }

    // The next basis: the columns of Z Q at length 1, orthonormalised.
    double negligible = MIN_EIGENVALUE * MIN_EIGENVALUE * small.lengths[0];
    double scale = small.lengths[column] > negligible ? 1 / sqrt(small.lengths[column]) : 0;
    for (int p = threadIdx.x / M; p < n_pixels; p += n_rows) image[(size_t)p * M + column] *= scale;
    __syncthreads();
    gram(image, n_pixels);
    if (warp() == 0) orthonormalise();
    __syncthreads();
    for (int p = threadIdx.x / M; p < n_pixels; p += n_rows)
        basis[(size_t)p * M + column] = rotated(image + (size_t)p * M, column);
}
