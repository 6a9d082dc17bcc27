// What every kernel shares: the arithmetic type, constants of the algorithm, reductions of fixed order, random numbers.
//
// The loader compiles a file with REAL = float or double and DIMS = 1 … 8 defined; the defaults below let it compile alone.
// Sums run in `real` over at most TILE samples of a block and in double beyond that, always in the same order, so that equal
// input gives equal bits.
#ifndef REAL
#define REAL float
#endif
#ifndef DIMS
#define DIMS 2
#endif

using real = REAL;

constexpr int D = DIMS;                    // dimensions of a sample
constexpr int TRIANGLE = D * (D + 1) / 2;  // entries of a symmetric or lower triangular D × D matrix, row by row
constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// As in gmmcnn/constants.py; a test compares.
constexpr int MAX_COMPONENTS = 32;
constexpr double MIN_VARIANCE = 1e-10;
constexpr double MIN_MEMBERSHIP = 2.3e-15;
constexpr double LLOYD_TOL = 1e-4;
constexpr int LLOYD_MAX_ITER = 300;
constexpr double CH_TIE = 1e-9;
constexpr double CH_ROUNDING = 8.0;
constexpr int PHILOX_ROUNDS = 10;
constexpr unsigned PHILOX_MULTIPLIER_0 = 0xD2511F53, PHILOX_MULTIPLIER_1 = 0xCD9E8D57;
constexpr unsigned PHILOX_KEY_STEP_0 = 0x9E3779B9, PHILOX_KEY_STEP_1 = 0xBB67AE85;

// As in gmmcnn/mixture/cuda.py; a test compares.
constexpr int TILE = 1024;        // samples between two barriers
constexpr int MAX_THREADS = 256;  // of a block

__device__ inline double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }
__device__ inline double undefined() { return __longlong_as_double(0x7ff8000000000000LL); }
__device__ inline int lane() { return threadIdx.x % WARP; }
__device__ inline int warp() { return threadIdx.x / WARP; }
__device__ inline int n_warps() { return blockDim.x / WARP; }

template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

template <class T>
__device__ T warp_max(T x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// Lane i gets x_0 + … + x_i.
__device__ inline double warp_cumulative_sum(double x) {
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        double before = __shfl_up_sync(ALL_LANES, x, lanes);
        if (lane() >= lanes) x += before;
    }
    return x;
}

// Lane i gets the warp's total of x[i % SIZE]: SIZE totals for about the price of SIZE shuffles. SIZE is a power of two.
template <int SIZE>
__device__ real warp_totals(real (&x)[SIZE]) {
#pragma unroll
    for (int half = SIZE / 2; half > 0; half /= 2) {
        bool upper = lane() & half;
#pragma unroll
        for (int i = 0; i < half; i++) {
            real kept = upper ? x[i + half] : x[i];
            real given = upper ? x[i] : x[i + half];
            x[i] = kept + __shfl_xor_sync(ALL_LANES, given, half);
        }
    }
#pragma unroll
    for (int lanes = SIZE; lanes < WARP; lanes *= 2) x[0] += __shfl_xor_sync(ALL_LANES, x[0], lanes);
    return x[0];
}

// The block's total, in every thread. `scratch` holds one double a warp and may be used again at once.
__device__ inline double block_sum(double x, double* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (lane() == 0) scratch[warp()] = x;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < n_warps(); w++) total += scratch[w];
    return total;
}

__device__ inline double block_max(double x, double* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (lane() == 0) scratch[warp()] = x;
    __syncthreads();
    for (int w = 0; w < n_warps(); w++) x = max(x, scratch[w]);
    return x;
}

// Address of a stream of random numbers; see gmmcnn/mixture/random_numbers.py.
struct Stream {
    unsigned long long seed, key;
    int n_components, start;
};

// Draw number `draw` of the stream, strictly between 0 and 1.
__device__ inline double uniform(const Stream& stream, int draw) {
    unsigned counter[4] = {
        (unsigned)draw / 4, (unsigned)(stream.start * 64 + stream.n_components), (unsigned)stream.seed,
        (unsigned)(stream.seed >> 32)};
    unsigned key[2] = {(unsigned)stream.key, (unsigned)(stream.key >> 32)};
#pragma unroll
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        unsigned high0 = __umulhi(PHILOX_MULTIPLIER_0, counter[0]), low0 = PHILOX_MULTIPLIER_0 * counter[0];
        unsigned high1 = __umulhi(PHILOX_MULTIPLIER_1, counter[2]), low1 = PHILOX_MULTIPLIER_1 * counter[2];
        counter[0] = high1 ^ counter[1] ^ key[0];
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key[1];
        counter[3] = low0;
        key[0] += PHILOX_KEY_STEP_0;
        key[1] += PHILOX_KEY_STEP_1;
    }
    unsigned word = draw % 4 == 0 ? counter[0] : draw % 4 == 1 ? counter[1] : draw % 4 == 2 ? counter[2] : counter[3];
    return (word + 0.5) / 4294967296.0;
}
