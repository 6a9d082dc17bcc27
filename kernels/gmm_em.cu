// Gaussian mixtures for every (filter, K, start) at once: one block fits one mixture, from its k-means start to the last
// M-step, in one launch. What it computes is written down in gmmcnn/mixture/reference.py and gmmcnn/mixture/initialise.py.
//
// Division of labour. A pass over the samples goes tile by tile. First every thread serves samples of its own and leaves
// one number for each in `work` (its label, or the log of its density); after a barrier every warp serves components of
// its own, its lanes add over the tile's samples, and the sums of a component never leave its warp. Nothing is kept for
// (sample, component) pairs: a density computed twice is cheaper than one stored. A sum is `real` within a lane and a
// tile, double beyond.
//
// Whitened sums. A component's sums are taken of u = g L⁻¹ (x − μ), g = √(log2(e) / 2), with the mean μ and the Cholesky
// factor L of the step before: 2^(−|u|²) is its density up to a factor, and near the fixed point u has mean 0 and a round
// covariance, so that nothing cancels in float32 even for a needle or a far spike. Lloyd's iteration is the same pass with
// L = g I, where u = x − μ.
//
// Twins: gmmcnn.mixture.reference.standardise, expectation_maximisation (after initialise.kmeans_labels) and predict.
#include "common.cuh"

#ifndef SCORE
#define SCORE float
#endif
#ifndef MAX_K
#define MAX_K 32  // largest number of components
#endif
#ifndef RESIDENT
#define RESIDENT 1  // all samples fit in shared memory; else they are read through the L1 cache, tile by tile
#endif

using score = SCORE;

constexpr int N_SUMS = 1 + D + TRIANGLE;           // Σr, Σru, Σruuᵀ of a component
constexpr int MIXTURE_NUMBERS = 1 + D + TRIANGLE;  // weight, mean and Cholesky factor of a component
constexpr int SAMPLES = D <= 4 ? 2 : 1;            // that a thread serves with a component's constants loaded once
// Registers bound how many blocks run at once: 64 a thread serve where a component is small, and are too few elsewhere.
constexpr int MIN_BLOCKS = sizeof(real) > 4 || D > 4 ? 1 : D > 2 ? 2 : RESIDENT ? 4 : 3;
constexpr int MAX_WARPS = MAX_THREADS / WARP;
constexpr int MAX_ITEMS = MAX_K > MAX_WARPS ? MAX_K : MAX_WARPS;
constexpr int MAX_SEGMENTS = 64;  // runs of samples whose distances k-means++ adds up apart
constexpr int MAX_TRIALS = 5;     // candidates of k-means++ for each centre: 2 + floor(ln MAX_COMPONENTS)
constexpr double HALF_LOG2_E = 0.72134752044448170368;
constexpr double LN_2 = 0.69314718055994530942;
constexpr double LOG2_2_PI = 2.65149612947231879804;
constexpr int MAX_EXPONENT = 1022;  // of a power of two that double holds, with either sign
constexpr real NEVER = -1e30f;      // log of the weight 0, finite so that differences stay numbers

struct __align__(16) Component {
    real mean[D];
    real factor[TRIANGLE];  // row i of L over its diagonal: L_ij / L_ii, and g / L_ii on the diagonal
    real log2_scale;        // log2(weight / (√(2π)^D det L))
};

// A block's problem and, of fixed size, what its threads share.
struct Problem {
    int n_samples, n_components, n_slices;  // slices: warps that share the work on one component
    const real* points;                     // (D, n_samples)
};
struct Shared {
    Component components[MAX_K];
    double weights[MAX_K];
    double factors[MAX_K][TRIANGLE];  // L
    double sums[MAX_ITEMS][N_SUMS];   // of item k + slice · n_components
    double partial[MAX_WARPS];
    union {
        real work[TILE];
        struct {
            double segments[MAX_TRIALS][MAX_SEGMENTS];  // distances left by each candidate, by runs of samples
            double left[MAX_TRIALS];                    // sums of them
            int candidates[MAX_TRIALS];
        } seeding;
    };
};
__shared__ Shared shared;
extern __shared__ __align__(16) unsigned char shared_memory[];  // the samples, where they fit

__device__ constexpr int entry(int i, int j) { return i * (i + 1) / 2 + j; }

// ---- one sample and one component --------------------------------------------------------------------------------------

__device__ inline real coordinate(const Problem& problem, int n, int j) {
#if RESIDENT
    return ((const real*)shared_memory)[j * problem.n_samples + n];
#else
    return problem.points[j * problem.n_samples + n];
#endif
}

__device__ inline void load_sample(const Problem& problem, int n, real (&x)[D]) {
#pragma unroll
    for (int j = 0; j < D; j++) x[j] = coordinate(problem, n, j);
}

__device__ inline void whiten(const Component& component, const real (&x)[D], real (&u)[D]) {
#pragma unroll
    for (int i = 0; i < D; i++) {
        u[i] = component.factor[entry(i, i)] * (x[i] - component.mean[i]);
#pragma unroll
        for (int j = 0; j < i; j++) u[i] = fma(-component.factor[entry(i, j)], u[j], u[i]);
    }
}

// log2 of weight × density; for Lloyd's components minus the squared distance.
__device__ inline real log2_joint(const Component& component, const real (&u)[D]) {
    real log2_density = component.log2_scale;
#pragma unroll
    for (int i = 0; i < D; i++) log2_density = fma(-u[i], u[i], log2_density);
    return log2_density;
}

__device__ inline int likeliest(const Component* components, int n_components, const real (&x)[D]) {
    int best = 0;
    real largest = 2 * NEVER;
#pragma unroll 2
    for (int k = 0; k < n_components; k++) {
        real u[D];
        whiten(components[k], x, u);
        real joint = log2_joint(components[k], u);
        best = joint > largest ? k : best;
        largest = max(joint, largest);
    }
    return best;
}

// ---- a pass over the samples -------------------------------------------------------------------------------------------

enum Membership { HARD, SOFT };

// work = log2 Σ_k π_k N(x_n | μ_k, Σ_k) of the tile's samples; returns this thread's part of their sum.
__device__ inline double expect(const Problem& problem, int start, int count) {
    real log2_likelihood = 0;
    for (int first = threadIdx.x; first < count; first += SAMPLES * blockDim.x) {
        real x[SAMPLES][D], largest[SAMPLES], total[SAMPLES];
#pragma unroll
        for (int s = 0; s < SAMPLES; s++) {
            load_sample(problem, start + min(first + s * (int)blockDim.x, count - 1), x[s]);
            largest[s] = 2 * NEVER;
            total[s] = 0;
        }
#pragma unroll 2
        for (int k = 0; k < problem.n_components; k++) {
            const Component component = shared.components[k];
#pragma unroll
            for (int s = 0; s < SAMPLES; s++) {
                real u[D];
                whiten(component, x[s], u);
                real joint = log2_joint(component, u);
                real ratio = exp2(-fabs(joint - largest[s]));  // smaller over larger
                total[s] = joint > largest[s] ? fma(total[s], ratio, (real)1) : total[s] + ratio;
                largest[s] = max(joint, largest[s]);
            }
        }
#pragma unroll
        for (int s = 0; s < SAMPLES; s++) {
            int n = first + s * (int)blockDim.x;
            if (n >= count) continue;
            shared.work[n] = largest[s] + log2(total[s]);
            log2_likelihood += shared.work[n];
        }
    }
    return log2_likelihood;
}

// work = label of the tile's samples: the given one, or the component nearest to the sample.
__device__ inline void assign(const Problem& problem, const signed char* given, int start, int count) {
#pragma unroll 1
    for (int n = threadIdx.x; n < count; n += blockDim.x) {
        real x[D];
        load_sample(problem, start + n, x);
        shared.work[n] = given ? given[start + n] : likeliest(shared.components, problem.n_components, x);
    }
}

// The warp's totals of x[FIRST …], written (start of a pass) or added to shared memory, number i by lane i % WARP.
template <int FIRST, int COUNT>
__device__ inline void add_totals(const real (&x)[COUNT], double* totals, bool at_start) {
    constexpr int LEFT = COUNT - FIRST;
    constexpr int SIZE = LEFT > 16 ? 32 : LEFT > 8 ? 16 : LEFT > 4 ? 8 : 4;
    real part[SIZE];
#pragma unroll
    for (int i = 0; i < SIZE; i++) part[i] = i < LEFT ? x[FIRST + (i < LEFT ? i : 0)] : (real)0;
    double total = warp_totals(part);
    if (lane() < min(SIZE, LEFT)) totals[FIRST + lane()] = at_start ? total : totals[FIRST + lane()] + total;
    if constexpr (LEFT > WARP) add_totals<FIRST + WARP>(x, totals, at_start);
}

// Adds the tile's samples to the sums of all components: the first COUNT of Σr, Σru, Σruuᵀ.
template <Membership MEMBERSHIP, int COUNT>
__device__ inline void accumulate(const Problem& problem, int start, int count) {
    for (int item = warp(); item < problem.n_components * problem.n_slices; item += n_warps()) {
        int k = item % problem.n_components, slice = item / problem.n_components;
        const Component component = shared.components[k];
        real sums[COUNT] = {};
#pragma unroll 1
        for (int n = slice * WARP + lane(); n < count; n += problem.n_slices * WARP) {
            real x[D], u[D];
            load_sample(problem, start + n, x);
            whiten(component, x, u);
            real work = shared.work[n];
            real share = MEMBERSHIP == SOFT ? exp2(log2_joint(component, u) - work) : (real)(work == k);
            sums[0] += share;
#pragma unroll
            for (int i = 0; i < D; i++) {
                real part = share * u[i];
                sums[1 + i] += part;
#pragma unroll
                for (int j = 0; j <= i; j++)
                    if (1 + D + entry(i, j) < COUNT) sums[1 + D + entry(i, j)] = fma(part, u[j], sums[1 + D + entry(i, j)]);
            }
        }
        add_totals<0>(sums, shared.sums[item], start == 0);
    }
}

// Sums of all components over all samples and, for SOFT, each warp's part of Σ log2 density in `partial`. Ends with a
// barrier.
template <Membership MEMBERSHIP, int COUNT>
__device__ inline void pass(const Problem& problem, const signed char* given) {
    double log2_likelihood = 0;
    for (int start = 0; start < problem.n_samples; start += TILE) {
        int count = min(TILE, problem.n_samples - start);
        if (start > 0) __syncthreads();
        if (MEMBERSHIP == SOFT) log2_likelihood += expect(problem, start, count);
        else assign(problem, given, start, count);
        __syncthreads();
        accumulate<MEMBERSHIP, COUNT>(problem, start, count);
    }
    if (MEMBERSHIP == SOFT) {
        log2_likelihood = warp_sum(log2_likelihood);
        if (lane() == 0) shared.partial[warp()] = log2_likelihood;
    }
    __syncthreads();
}

__device__ inline double sum_of_slices(const Problem& problem, int k, int i) {
    double sum = 0;
    for (int slice = 0; slice < problem.n_slices; slice++) sum += shared.sums[k + slice * problem.n_components][i];
    return sum;
}

// ---- the start ---------------------------------------------------------------------------------------------------------

// The component of a centre at 0.
__device__ inline void set_centre(Component& component) {
    component = Component();
    for (int i = 0; i < D; i++) component.factor[entry(i, i)] = 1;
}

__device__ inline real squared_distance(const real (&x)[D], const real (&y)[D]) {
    real sum = 0;
#pragma unroll
    for (int j = 0; j < D; j++) sum = fma(x[j] - y[j], x[j] - y[j], sum);
    return sum;
}

// Squared distance of a sample from the nearest of the first centres, something large where there is none.
__device__ inline real nearest_distance(const real (&x)[D], int n_centres) {
    real nearest = -NEVER;
#pragma unroll 1
    for (int c = 0; c < n_centres; c++) nearest = min(nearest, squared_distance(x, shared.components[c].mean));
    return nearest;
}

// First sample at which the cumulative sum of distances exceeds `target`, found by one warp: first its segment.
__device__ __noinline__ int find_sample(
    Problem problem, double target, const double* segments, int n_segments, int segment_size, int n_centres) {
    double before = 0;
    int start = 0;
    for (int first = 0; first < n_segments; first += WARP) {
        double cumulative = before + warp_cumulative_sum(first + lane() < n_segments ? segments[first + lane()] : 0.0);
        unsigned beyond = __ballot_sync(ALL_LANES, cumulative > target);
        int passed = beyond ? __ffs(beyond) - 1 : WARP;
        start += passed * segment_size;
        if (passed > 0) before = __shfl_sync(ALL_LANES, cumulative, passed - 1);
        if (beyond) break;
    }
#pragma unroll 1
    for (int first = start; first < problem.n_samples; first += WARP) {
        real x[D];
        bool exists = first + lane() < problem.n_samples;
        load_sample(problem, min(first + lane(), problem.n_samples - 1), x);
        double distance = exists ? (double)nearest_distance(x, n_centres) : 0.0;
        double cumulative = before + warp_cumulative_sum(distance);
        unsigned beyond = __ballot_sync(ALL_LANES, cumulative > target);
        if (beyond) return min(first + __ffs(beyond) - 1, problem.n_samples - 1);
        before = __shfl_sync(ALL_LANES, cumulative, WARP - 1);
    }
    return problem.n_samples - 1;
}

// k-means++: K samples far from each other become the means of the components.
__device__ inline void seed_centres(const Problem& problem, const Stream& stream) {
    int n_trials = 2 + (int)logf((float)problem.n_components);
    int segment_size = (problem.n_samples + MAX_SEGMENTS * WARP - 1) / (MAX_SEGMENTS * WARP) * WARP;
    int n_segments = (problem.n_samples + segment_size - 1) / segment_size;
    auto& seeding = shared.seeding;
    int best = 0, trials = 1;
    for (int c = 0; c < problem.n_components; c++) {
        double total = c == 0 ? 0.0 : seeding.left[best];
        trials = c == 0 ? 1 : n_trials;
        for (int t = warp(); t < trials; t += n_warps()) {
            double draw = uniform(stream, c == 0 ? 0 : 1 + (c - 1) * n_trials + t);
            int found = min((int)(draw * problem.n_samples), problem.n_samples - 1);
            if (total > 0) found = find_sample(problem, draw * total, seeding.segments[best], n_segments, segment_size, c);
            if (lane() == 0) seeding.candidates[t] = found;
        }
        __syncthreads();

        real candidate[MAX_TRIALS][D];
#pragma unroll
        for (int t = 0; t < MAX_TRIALS; t++) load_sample(problem, seeding.candidates[t < trials ? t : 0], candidate[t]);
        for (int segment = warp(); segment < n_segments; segment += n_warps()) {
            real sums[MAX_TRIALS] = {};
            int end = min((segment + 1) * segment_size, problem.n_samples);
#pragma unroll 1
            for (int n = segment * segment_size + lane(); n < end; n += WARP) {
                real x[D];
                load_sample(problem, n, x);
                real nearest = nearest_distance(x, c);
#pragma unroll
                for (int t = 0; t < MAX_TRIALS; t++) sums[t] += min(nearest, squared_distance(x, candidate[t]));
            }
#pragma unroll
            for (int t = 0; t < MAX_TRIALS; t++) {
                double sum = warp_sum((double)sums[t]);
                if (lane() == 0 && t < trials) seeding.segments[t][segment] = sum;
            }
        }
        __syncthreads();

        for (int t = warp(); t < trials; t += n_warps()) {
            double sum = 0;
            for (int segment = lane(); segment < n_segments; segment += WARP) sum += seeding.segments[t][segment];
            sum = warp_sum(sum);
            if (lane() == 0) seeding.left[t] = sum;
        }
        __syncthreads();
        best = 0;
        for (int t = 1; t < trials; t++) best = seeding.left[t] < seeding.left[best] ? t : best;
        int j = threadIdx.x;
        if (j < D) shared.components[c].mean[j] = coordinate(problem, seeding.candidates[best], j);
        __syncthreads();
    }
}

// Each centre moves to the mean of its samples, one without samples stays. Lane k of the first warp moves centre k;
// returns, in every thread, the sum of the squared moves.
__device__ inline double move_centres(const Problem& problem) {
    if (warp() == 0) {
        double moved = 0;
        double size = lane() < problem.n_components ? sum_of_slices(problem, lane(), 0) : 0.0;
        for (int j = 0; j < D && size > 0; j++) {
            real& mean = shared.components[lane()].mean[j];
            real before = mean;
            mean += sum_of_slices(problem, lane(), 1 + j) / size;
            moved += (double)(mean - before) * (mean - before);
        }
        moved = warp_sum(moved);
        if (lane() == 0) shared.partial[0] = moved;
    }
    __syncthreads();
    return shared.partial[0];
}

// Sums of the components over hard labels: the given ones, or those of Lloyd's iteration from k-means++ centres. Given
// labels settle Lloyd's iteration after one round, at their means. A function apart, so that EM has the registers to
// itself.
__device__ __noinline__ void start_from_labels(Problem problem, Stream stream, const signed char* given) {
    if (threadIdx.x < problem.n_components) set_centre(shared.components[threadIdx.x]);
    __syncthreads();
    if (!given) seed_centres(problem, stream);
    for (int round = 0; round < LLOYD_MAX_ITER; round++) {
        pass<HARD, 1 + D>(problem, given);
        if (move_centres(problem) <= LLOYD_TOL || given) break;
    }
    pass<HARD, N_SUMS>(problem, given);
}

// ---- M-step ------------------------------------------------------------------------------------------------------------

// What the passes need of a component, from its weight and Cholesky factor.
__device__ inline void prepare(Component& component, double weight, const double* factor) {
    double log2_scale = log2(weight) - 0.5 * D * LOG2_2_PI;
    for (int i = 0; i < D; i++) {
        double diagonal = factor[entry(i, i)];
        log2_scale -= log2(diagonal);
        for (int j = 0; j < i; j++) component.factor[entry(i, j)] = factor[entry(i, j)] / diagonal;
        component.factor[entry(i, i)] = sqrt(HALF_LOG2_E) / diagonal;
    }
    component.log2_scale = weight > 0 ? (real)log2_scale : NEVER;
}

__device__ inline void set_diagonal(double* factor, double value) {
    for (int i = 0; i < TRIANGLE; i++) factor[i] = 0;
    for (int i = 0; i < D; i++) factor[entry(i, i)] = value;
}

// In place: Cholesky factor of a symmetric matrix, pivots clamped from below.
__device__ inline void cholesky(double* matrix, double min_pivot) {
    for (int j = 0; j < D; j++) {
        double pivot = matrix[entry(j, j)];
        for (int m = 0; m < j; m++) pivot -= matrix[entry(j, m)] * matrix[entry(j, m)];
        pivot = sqrt(max(pivot, min_pivot));
        matrix[entry(j, j)] = pivot;
        for (int i = j + 1; i < D; i++) {
            double value = matrix[entry(i, j)];
            for (int m = 0; m < j; m++) value -= matrix[entry(i, m)] * matrix[entry(j, m)];
            matrix[entry(i, j)] = value / pivot;
        }
    }
}

// New weight, mean and factor of component k from its sums, by one lane. With m and C the mean and covariance of u,
// μ ← μ + L m / g and Σ ← L C Lᵀ / g² + reg_covar I.
__device__ __noinline__ void maximise(Problem problem, int k, double reg_covar, bool is_first) {
    Component& component = shared.components[k];
    double* factor = shared.factors[k];
    double* sums = shared.sums[k];
    double min_pivot = max(reg_covar, MIN_VARIANCE);
    for (int i = 0; i < N_SUMS; i++) sums[i] = sum_of_slices(problem, k, i);
    double size = sums[0], *mean = sums + 1, *covariance = sums + 1 + D;
    shared.weights[k] = size < MIN_MEMBERSHIP ? 0.0 : size / problem.n_samples;
    if (size < MIN_MEMBERSHIP) {
        if (is_first) {
            set_diagonal(factor, sqrt(min_pivot));
            for (int i = 0; i < D; i++) component.mean[i] = 0;
        }
        component.log2_scale = NEVER;
        return;
    }
    for (int i = 0; i < D; i++) mean[i] /= size;
    for (int i = 0; i < D; i++)
        for (int j = 0; j <= i; j++) covariance[entry(i, j)] = covariance[entry(i, j)] / size - mean[i] * mean[j];
    for (int i = D - 1; i >= 0; i--) {  // row i of L C Lᵀ takes the place of row i of L, which no row above needs
        double row[D] = {}, move = 0;
        for (int a = 0; a <= i; a++) {
            move += factor[entry(i, a)] * mean[a];
            for (int b = 0; b <= i; b++) row[b] += factor[entry(i, a)] * covariance[a > b ? entry(a, b) : entry(b, a)];
        }
        component.mean[i] += move / sqrt(HALF_LOG2_E);
        for (int j = i; j >= 0; j--) {
            double value = j == i ? reg_covar * HALF_LOG2_E : 0;
            for (int b = 0; b <= j; b++) value += row[b] * factor[entry(j, b)];
            row[j] = value / HALF_LOG2_E;
        }
        for (int j = 0; j <= i; j++) factor[entry(i, j)] = row[j];
    }
    cholesky(factor, min_pivot);
    prepare(component, shared.weights[k], factor);
}

// ---- kernels -----------------------------------------------------------------------------------------------------------

// One block a filter. Centred scores divided by the root of their mean variance, and the number of distinct samples up to
// k_max; 0 for a filter whose scores do not vary. Sums and squares are those of scores divided by a power of two.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) standardise(
    const score* __restrict__ scores,  // (F, N, D)
    int n_samples,                     // N
    int k_max,
    double precision,              // distance of 1 from the next number, in the scores' dtype
    real* __restrict__ points,     // (F, D, N)
    double* __restrict__ centre,   // (F, D)
    double* __restrict__ scale,    // (F,)
    int* __restrict__ n_distinct)  // (F,)
{
    __shared__ double scratch[MAX_THREADS / WARP];
    __shared__ score distinct[MAX_COMPONENTS][D];
    int f = blockIdx.x;
    scores += (size_t)f * n_samples * D;
    points += (size_t)f * n_samples * D;
    double largest = 0, widest = 0;  // score, and difference from the first sample
    for (int j = 0; j < D; j++)
        for (int n = threadIdx.x; n < n_samples; n += blockDim.x) {
            largest = max(largest, fabs((double)scores[n * D + j]));
            widest = max(widest, fabs((double)scores[n * D + j] - (double)scores[j]));
        }
    largest = block_max(largest, scratch);
    bool dead = block_max(widest, scratch) <= precision * largest;
    int exponent = min(largest > 0 ? ilogb(largest) + 1 : 0, MAX_EXPONENT);
    double unit = ldexp(1.0, exponent), factor = ldexp(1.0, -exponent);

    double mean[D], square = 0;
    for (int j = 0; j < D; j++) {
        double sum = 0;
        for (int n = threadIdx.x; n < n_samples; n += blockDim.x) sum += scores[n * D + j] * factor;
        mean[j] = block_sum(sum, scratch) / n_samples;
        for (int n = threadIdx.x; n < n_samples; n += blockDim.x) {
            double offset = scores[n * D + j] * factor - mean[j];
            square += offset * offset;
        }
    }
    double deviation = sqrt(block_sum(square, scratch) / ((double)n_samples * D));
    for (int j = 0; j < D; j++)
        for (int n = threadIdx.x; n < n_samples; n += blockDim.x)
            points[j * n_samples + n] = dead ? 0.0 : (scores[n * D + j] * factor - mean[j]) / deviation;

    int found = 0;
    for (int next = threadIdx.x; !dead && found < k_max; found++) {  // next: this thread's first sample not known yet
        for (bool known = true; known && next < n_samples;) {
            known = false;
            for (int i = 0; i < found && !known; i++) {
                known = true;
                for (int j = 0; j < D; j++) known &= distinct[i][j] == scores[next * D + j];
            }
            if (known) next += blockDim.x;
        }
        int first = -(int)block_max(-next, scratch);
        if (first >= n_samples) break;
        if (threadIdx.x < D) distinct[found][threadIdx.x] = scores[first * D + threadIdx.x];
        __syncthreads();
    }
    if (threadIdx.x > 0) return;
    for (int j = 0; j < D; j++) centre[(size_t)f * D + j] = mean[j] * unit;
    scale[f] = deviation * unit;
    n_distinct[f] = dead ? 0 : found;
}

// One block a (filter, K, start), grid (F · n_k · n_init,), many components first: they run longest.
extern "C" __global__ void __launch_bounds__(MAX_THREADS, MIN_BLOCKS) fit_mixtures(
    const real* __restrict__ points,              // (F, D, N) standardised
    const int* __restrict__ n_distinct,           // (F,)
    const unsigned long long* __restrict__ keys,  // (F,)
    const int* __restrict__ given_row,            // (n_k,) row of `given` from which EM starts for K = k_min + i, or -1
    const signed char* __restrict__ given,        // (rows, F, N) labels
    int n_filters,
    int n_samples,
    int k_min,
    int n_k,
    int n_init,
    unsigned long long seed,
    double tol,
    int max_iter,
    double reg_covar,
    double* __restrict__ lower_bound,  // (F, n_k, n_init), NaN where K > n_distinct
    int* __restrict__ n_iter,          // (F, n_k, n_init)
    bool* __restrict__ converged,      // (F, n_k, n_init)
    double* __restrict__ mixtures)     // (F, n_k, n_init, k_max, MIXTURE_NUMBERS)
{
    int start = blockIdx.x % n_init, f = blockIdx.x / n_init % n_filters, i = n_k - 1 - blockIdx.x / n_init / n_filters;
    int k_max = k_min + n_k - 1, n_components = k_min + i;
    size_t fit = ((size_t)f * n_k + i) * n_init + start;
    bool too_many = n_components > n_distinct[f];
    if (too_many || (given_row[i] >= 0 && start > 0)) {
        if (threadIdx.x == 0) {
            lower_bound[fit] = too_many ? undefined() : -infinity();
            n_iter[fit] = 0;
            converged[fit] = false;
        }
        return;
    }

    points += (size_t)f * D * n_samples;
    Problem problem{n_samples, n_components, max(1, n_warps() / n_components), points};
#if RESIDENT
    for (int n = threadIdx.x; n < D * n_samples; n += blockDim.x) ((real*)shared_memory)[n] = points[n];
#endif

    given = given_row[i] >= 0 ? given + ((size_t)given_row[i] * n_filters + f) * n_samples : nullptr;
    start_from_labels(problem, Stream{seed, keys[f], n_components, start}, given);
    if (threadIdx.x < n_components) {
        set_diagonal(shared.factors[threadIdx.x], sqrt(HALF_LOG2_E));
        maximise(problem, threadIdx.x, reg_covar, true);
    }
    __syncthreads();

    double bound = -infinity(), previous;
    int iteration = 0;
    bool settled;
    do {
        iteration++;
        previous = bound;
        pass<SOFT, N_SUMS>(problem, nullptr);
        bound = 0;
        for (int w = 0; w < n_warps(); w++) bound += shared.partial[w];
        bound *= LN_2 / n_samples;
        if (threadIdx.x < n_components) maximise(problem, threadIdx.x, reg_covar, false);
        __syncthreads();
        settled = fabs(bound - previous) < tol;
    } while (!settled && iteration < max_iter);

    if (threadIdx.x == 0) {
        lower_bound[fit] = bound;
        n_iter[fit] = iteration;
        converged[fit] = settled;
    }
    if (threadIdx.x < n_components) {
        int k = threadIdx.x;
        double* mixture = mixtures + (fit * k_max + k) * MIXTURE_NUMBERS;
        mixture[0] = shared.weights[k];
        for (int j = 0; j < D; j++) mixture[1 + j] = shared.components[k].mean[j];
        for (int j = 0; j < TRIANGLE; j++) mixture[1 + D + j] = shared.factors[k][j];
    }
}

// One block a (filter, K), grid (F, n_k). The best start and its labels.
extern "C" __global__ void __launch_bounds__(MAX_THREADS) predict(
    const real* __restrict__ points,         // (F, D, N) standardised
    const double* __restrict__ mixtures,     // (F, n_k, n_init, k_max, MIXTURE_NUMBERS)
    const double* __restrict__ lower_bound,  // (F, n_k, n_init)
    int n_samples,
    int k_min,
    int n_init,
    int* __restrict__ best_start,      // (F, n_k)
    signed char* __restrict__ labels)  // (F, n_k, N), -1 where K was not fitted
{
    __shared__ Component components[MAX_COMPONENTS];
    int n_components = k_min + blockIdx.y, k_max = k_min + gridDim.y - 1;
    size_t fit = (size_t)blockIdx.x * gridDim.y + blockIdx.y;
    points += (size_t)blockIdx.x * D * n_samples;
    labels += fit * n_samples;
    lower_bound += fit * n_init;
    int best = 0;
    for (int start = 1; start < n_init; start++) best = lower_bound[start] > lower_bound[best] ? start : best;
    bool fitted = lower_bound[best] == lower_bound[best];
    if (threadIdx.x == 0) best_start[fit] = best;
    if (fitted && threadIdx.x < n_components) {
        const double* mixture = mixtures + ((fit * n_init + best) * k_max + threadIdx.x) * MIXTURE_NUMBERS;
        components[threadIdx.x] = Component();
        for (int j = 0; j < D; j++) components[threadIdx.x].mean[j] = mixture[1 + j];
        prepare(components[threadIdx.x], mixture[0], mixture + 1 + D);
    }
    __syncthreads();
    for (int n = threadIdx.x; n < n_samples; n += blockDim.x) {
        real x[D];
#pragma unroll
        for (int j = 0; j < D; j++) x[j] = points[j * n_samples + n];
        labels[n] = fitted ? likeliest(components, n_components, x) : -1;
    }
}
