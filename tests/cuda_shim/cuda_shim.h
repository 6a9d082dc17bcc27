// The part of CUDA C++ that the kernels use, for a CPU. Included before the unmodified text of a .cu file.
//
// Every CUDA thread is a fiber; all fibers of a block run on one OS thread, so `__shared__` is `thread_local`. Barriers and
// warp intrinsics are meeting points of fibers (runtime.cpp) and carry the line they stand on, so that threads which meet at
// different lines are found out.
#pragma once
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __shared__ thread_local
#define SHIM_UNCHECKED __attribute__((no_sanitize("thread")))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };

namespace cuda_shim {
uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
void sync_threads(int line);
void sync_warp(unsigned mask, int line);

enum WarpOperation : int { SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, BALLOT };
// The 64 bits that lane `source` gave, or for BALLOT the mask of lanes that gave a non-zero value.
uint64_t warp_exchange(WarpOperation operation, unsigned mask, uint64_t bits, int argument, int width, int line);
uint64_t atomic(int operation, void* address, int size, uint64_t bits, uint64_t compare);

template <class T>
SHIM_UNCHECKED T shuffle(WarpOperation operation, unsigned mask, T value, int argument, int width, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = warp_exchange(operation, mask, bits, argument, width, line);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
}  // namespace cuda_shim

#define threadIdx (cuda_shim::thread_index())
#define blockIdx (cuda_shim::block_index())
#define blockDim (cuda_shim::block_size())
#define gridDim (cuda_shim::grid_size())
#define warpSize 32

#define __syncthreads() cuda_shim::sync_threads(__LINE__)
#define SHIM_MASK(mask, ...) mask
#define __syncwarp(...) cuda_shim::sync_warp(SHIM_MASK(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu, 0), __LINE__)
#define SHIM_WIDTH(first, ...) first
#define SHIM_SHUFFLE(operation, mask, value, argument, ...) \
    cuda_shim::shuffle(cuda_shim::operation, mask, value, (int)(argument), SHIM_WIDTH(__VA_ARGS__ __VA_OPT__(, ) 32, 0), __LINE__)
#define __shfl_sync(mask, value, lane, ...) SHIM_SHUFFLE(SHUFFLE, mask, value, lane, __VA_ARGS__)
#define __shfl_up_sync(mask, value, delta, ...) SHIM_SHUFFLE(SHUFFLE_UP, mask, value, delta, __VA_ARGS__)
#define __shfl_down_sync(mask, value, delta, ...) SHIM_SHUFFLE(SHUFFLE_DOWN, mask, value, delta, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, lanes, ...) SHIM_SHUFFLE(SHUFFLE_XOR, mask, value, lanes, __VA_ARGS__)
#define __ballot_sync(mask, predicate) \
    ((unsigned)cuda_shim::warp_exchange(cuda_shim::BALLOT, mask, (predicate) ? 1 : 0, 0, 32, __LINE__))
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __all_sync(mask, predicate) (__ballot_sync(mask, predicate) == (mask))

template <class T>
SHIM_UNCHECKED T shim_atomic(int operation, T* address, T value, T compare = T()) {
    uint64_t bits = 0, old = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    __builtin_memcpy(&old, &compare, sizeof compare);
    old = cuda_shim::atomic(operation + (T(0.5) != T(0) ? 100 : 0), address, sizeof value, bits, old);
    __builtin_memcpy(&value, &old, sizeof value);
    return value;
}
template <class T> T atomicAdd(T* address, T value) { return shim_atomic(0, address, value); }
inline int atomicMax(int* address, int value) { return shim_atomic(1, address, value); }
template <class T> T atomicExch(T* address, T value) { return shim_atomic(2, address, value); }
template <class T> T atomicCAS(T* address, T compare, T value) { return shim_atomic(3, address, value, compare); }

template <class T> T __ldg(const T* address) { return *address; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)(((unsigned __int128)a * b) >> 64); }
inline float __int_as_float(int bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
inline float __uint_as_float(unsigned bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
inline int __float_as_int(float x) { int bits; __builtin_memcpy(&bits, &x, 4); return bits; }
inline double __longlong_as_double(long long bits) { double x; __builtin_memcpy(&x, &bits, 8); return x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
// What Python needs to call a kernel: its parameter types and a call from an array of pointers to arguments.
namespace cuda_shim {
template <class T> struct Code;
#define SHIM_CODE(type, code) template <> struct Code<type> { static constexpr char value = code; };
SHIM_CODE(float, 'f') SHIM_CODE(double, 'd') SHIM_CODE(int, 'i') SHIM_CODE(unsigned, 'I') SHIM_CODE(bool, '?')
SHIM_CODE(long long, 'q') SHIM_CODE(unsigned long long, 'Q') SHIM_CODE(signed char, 'b') SHIM_CODE(unsigned char, 'B')
SHIM_CODE(short, 'h') SHIM_CODE(unsigned short, 'H')

template <class T> struct Parameter { static void write(char*& out) { *out++ = 's'; *out++ = Code<T>::value; } };
template <class T> struct Parameter<T*> { static void write(char*& out) { *out++ = 'w'; *out++ = Code<T>::value; } };
template <class T> struct Parameter<const T*> { static void write(char*& out) { *out++ = 'r'; *out++ = Code<T>::value; } };

template <class F> struct Kernel;
template <class... A> struct Kernel<void (*)(A...)> {
    static void signature(char* out) { (Parameter<A>::write(out), ...); *out = 0; }
};
template <size_t... I> struct Indices {};
template <size_t N, size_t... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <size_t... I> struct MakeIndices<0, I...> { using type = Indices<I...>; };
template <class... A, size_t... I> SHIM_UNCHECKED void apply(void* kernel, void** arguments, void (*)(A...), Indices<I...>) {
    ((void (*)(A...))kernel)(*(A*)arguments[I]...);
}
template <class... A> SHIM_UNCHECKED void call(void (*kernel)(A...), void** arguments) {
    apply((void*)kernel, arguments, kernel, typename MakeIndices<sizeof...(A)>::type());
}
}  // namespace cuda_shim

#define SHIM_KERNEL(name)                                                                              \
    extern "C" __attribute__((visibility("default"))) void shim_signature_##name(char* out) {          \
        cuda_shim::Kernel<decltype(&name)>::signature(out);                                            \
    }                                                                                                  \
    extern "C" __attribute__((visibility("default"))) SHIM_UNCHECKED void shim_call_##name(void** arguments) { \
        cuda_shim::call(&name, arguments);                                                             \
    }
