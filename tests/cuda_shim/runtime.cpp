// Fibers, their meeting points and, in the check mode, the watch over every memory access.
//
// Linked into each compiled kernel file. One call of shim_launch runs a grid: block after block, every thread of a block a fiber
// that runs until it must wait for others. The schedule (first to last, last to first, random) decides who runs next, and a
// kernel without a race gives the same bits under all of them.
//
// The check mode compiles the kernel with -fsanitize=thread but links the hooks below instead of libtsan. Each byte of shared and
// global memory remembers who wrote and read it last and in which interval between barriers; two accesses by different threads,
// one of them a write, with no barrier between them are a race. A byte outside every array, a write to a const array and a read
// of shared memory that nobody wrote are errors too.
#include <link.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "cuda_shim.h"

unsigned char* shim_dynamic_shared();  // this OS thread's copy of the kernels' `extern __shared__` array; see device.py

namespace cuda_shim {
namespace {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 256 << 10;

enum Schedule { FIFO, LIFO, RANDOM };

struct Fiber {
    jmp_buf context;
    ucontext_t first_context;
    char* stack;
    uint3 index;
    int linear;
    bool started, waiting, finished;
    int line;                // of the meeting point it waits at
    bool at_block_barrier;   // else at a warp's
    uint64_t result;
};

// Lanes that have come to the warp's current meeting point.
struct Warp {
    unsigned mask, arrived;
    int operation, line;
    uint64_t bits[WARP];
    int argument[WARP], width;
    unsigned interval;       // counts __syncwarp of the whole warp
};

struct Array { char* base; size_t bytes; bool writable; };

// Who touched a byte last, and when.
struct Access { int block, thread; unsigned interval, warp_interval; };
constexpr int NOBODY = -1, SEVERAL = -2;  // SEVERAL: readers in more than one warp; -3 - w: several in warp w
struct Byte {
    Access write{0, NOBODY, 0, 0}, read{0, NOBODY, 0, 0};
    bool atomic = false;
    int block = -1;  // of shared memory: whose it was last
};

struct Launch {
    void (*kernel)(void**);
    void** arguments;
    dim3 grid, block;
    size_t shared_bytes;
    Schedule schedule;
    unsigned seed;
    bool check;
    std::vector<Array> arrays;
    std::vector<std::vector<Byte>> array_bytes;
    std::atomic<unsigned> next_block{0};
    std::atomic<bool> failed{false};
    char message[512] = "";
};

// One OS thread's block.
struct Block {
    Launch* launch;
    uint3 index;
    int linear, live, arrived;
    unsigned interval;       // counts __syncthreads
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Fiber* current;
    jmp_buf scheduler;
    std::vector<Byte> shared_bytes;
    char *statics, *statics_end;
    std::vector<Byte> static_bytes;
    void* access_site;
};

thread_local Block* block = nullptr;

[[noreturn]] void fail(const char* format, ...) {
    Launch& launch = *block->launch;
    if (!launch.failed.exchange(true)) {
        va_list values;
        va_start(values, format);
        int length = vsnprintf(launch.message, sizeof launch.message, format, values);
        va_end(values);
        Dl_info info;
        if (block->access_site && dladdr(block->access_site, &info))
            snprintf(launch.message + length, sizeof launch.message - length, " @%#lx",
                     (unsigned long)((char*)block->access_site - (char*)info.dli_fbase - 1));
    }
    _longjmp(block->scheduler, 2);
}

void yield() {
    if (!_setjmp(block->current->context)) _longjmp(block->scheduler, 1);
}

void wait_for_others(int line, bool at_block_barrier) {
    Fiber& fiber = *block->current;
    fiber.line = line;
    fiber.at_block_barrier = at_block_barrier;
    while (fiber.waiting) yield();
}

void release_block_barrier_if_complete() {
    if (block->arrived == 0 || block->arrived < block->live) return;
    block->access_site = nullptr;
    int line = -1;
    for (Fiber& fiber : block->fibers) {
        if (fiber.finished) continue;
        if (line >= 0 && fiber.line != line)
            fail("divergent barrier: threads of block %d meet at line %d and at line %d", block->linear, line, fiber.line);
        line = fiber.line;
    }
    if (block->launch->check && block->live < (int)block->fibers.size())
        fail("divergent barrier: threads of block %d wait at line %d for threads that have exited", block->linear, line);
    for (Fiber& fiber : block->fibers) fiber.waiting = false;
    block->arrived = 0;
    block->interval++;
}

void fiber_main() {
    block->launch->kernel(block->launch->arguments);
    block->current->finished = true;
    block->live--;
    release_block_barrier_if_complete();
    _longjmp(block->scheduler, 1);
}

void run(Fiber& fiber) {
    block->current = &fiber;
    int outcome = _setjmp(block->scheduler);
    if (outcome == 1) return;
    if (outcome == 2) throw 0;
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    getcontext(&fiber.first_context);
    fiber.first_context.uc_stack.ss_sp = fiber.stack;
    fiber.first_context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber.first_context, fiber_main, 0);
    setcontext(&fiber.first_context);
}

void report_deadlock() {
    const Fiber *first = nullptr, *other = nullptr;
    for (const Fiber& fiber : block->fibers) {
        if (fiber.finished) continue;
        if (!first) first = &fiber;
        if (fiber.line != first->line || fiber.at_block_barrier != first->at_block_barrier) other = &fiber;
    }
    block->access_site = nullptr;
    if (other)
        fail("divergent barrier: in block %d thread %d waits at line %d and thread %d at line %d", block->linear,
             first->linear, first->line, other->linear, other->line);
    fail("divergent barrier: in block %d thread %d waits at line %d for threads that have exited", block->linear,
         first->linear, first->line);
}

// The thread-local storage of this module holds the kernels' static __shared__ variables and little else.
int find_statics(dl_phdr_info* info, size_t, void* data) {
    char* probe = (char*)shim_dynamic_shared();
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        char* base = (char*)info->dlpi_tls_data;
        if (header.p_type != PT_TLS || !base || probe < base || probe >= base + header.p_memsz) continue;
        ((Block*)data)->statics = base;
        ((Block*)data)->statics_end = base + header.p_memsz;
    }
    return 0;
}

void poison_shared_memory() {
    Block* mine = block;  // lives in thread-local storage itself
    memset(mine->statics, 0xff, (char*)mine->statics_end - (char*)mine->statics);
    *(Block* volatile*)&block = mine;
}

void run_block(unsigned linear) {
    const Launch& launch = *block->launch;
    block->linear = (int)linear;
    block->index = {linear % launch.grid.x, linear / launch.grid.x % launch.grid.y, linear / launch.grid.x / launch.grid.y};
    block->live = (int)block->fibers.size();
    block->arrived = 0;
    block->interval = 0;
    block->access_site = nullptr;
    for (Warp& warp : block->warps) warp = Warp();
    for (size_t t = 0; t < block->fibers.size(); t++) {
        Fiber& fiber = block->fibers[t];
        fiber.linear = (int)t;
        fiber.index = {unsigned(t) % launch.block.x, unsigned(t) / launch.block.x % launch.block.y,
                       unsigned(t) / launch.block.x / launch.block.y};
        fiber.started = fiber.waiting = fiber.finished = false;
    }
    poison_shared_memory();

    std::vector<int> order(block->fibers.size());
    std::iota(order.begin(), order.end(), 0);
    if (launch.schedule == LIFO) std::reverse(order.begin(), order.end());
    std::mt19937 random(launch.seed + linear);
    while (block->live > 0) {
        bool moved = false;
        if (launch.schedule == RANDOM) std::shuffle(order.begin(), order.end(), random);
        for (int t : order) {
            Fiber& fiber = block->fibers[t];
            if (fiber.finished || fiber.waiting) continue;
            moved = true;
            run(fiber);
        }
        if (!moved) {
            if (int outcome = _setjmp(block->scheduler)) throw outcome;
            report_deadlock();
        }
    }
}

void work(Launch& launch) {
    Block mine{};
    block = &mine;
    block->launch = &launch;
    size_t threads = (size_t)launch.block.x * launch.block.y * launch.block.z;
    block->fibers.resize(threads);
    block->warps.resize((threads + WARP - 1) / WARP);
    char* stacks = (char*)mmap(nullptr, threads * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (size_t t = 0; t < threads; t++) block->fibers[t].stack = stacks + t * STACK_BYTES;
    dl_iterate_phdr(find_statics, block);
    if (launch.check) {
        block->shared_bytes.resize(launch.shared_bytes);
        block->static_bytes.resize(block->statics_end - block->statics);
    }
    unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
    try {
        for (unsigned b; !launch.failed && (b = launch.next_block++) < blocks;) {
            // Blocks have no order on a device either.
            unsigned chosen = launch.schedule == FIFO ? b : blocks - 1 - b;
            run_block(chosen);
        }
    } catch (int) {}
    munmap(stacks, threads * STACK_BYTES);
    block = nullptr;
}

// ---- the check mode ----------------------------------------------------------------------------------------------------

bool ordered(const Access& before, const Access& now) {
    if (before.thread == NOBODY) return true;
    if (before.block != now.block) return false;
    if (before.thread == now.thread || before.interval < now.interval) return true;
    int warp = before.thread <= -3 ? -3 - before.thread : before.thread == SEVERAL ? -1 : before.thread / WARP;
    return warp == now.thread / WARP && before.warp_interval < now.warp_interval;
}

// Shared memory must be written before it is read, and belongs to one block.
void check_bytes(Byte* bytes, int size, bool is_write, bool is_atomic, bool must_be_written, const char* where, size_t offset) {
    int thread = block->current->linear;
    Access now{block->linear, thread, block->interval, block->warps[thread / WARP].interval};
    for (int i = 0; i < size; i++) {
        Byte& byte = bytes[i];
        if (must_be_written && byte.block != block->linear) byte = Byte(), byte.block = block->linear;
        bool both_atomic = is_atomic && byte.atomic;
        if (!is_write && must_be_written && byte.write.thread == NOBODY)
            fail("uninitialised read: block %d thread %d reads byte %zu of %s, which no thread has written", block->linear, thread,
                 offset + i, where);
        if (!both_atomic && !ordered(byte.write, now))
            fail("race: block %d thread %d %s byte %zu of %s, written by block %d thread %d with no barrier between", block->linear,
                 thread, is_write ? "writes" : "reads", offset + i, where, byte.write.block, byte.write.thread);
        if (is_write && !both_atomic && !ordered(byte.read, now))
            fail("race: block %d thread %d writes byte %zu of %s, read by other threads with no barrier between", block->linear, thread,
                 offset + i, where);
        if (is_write) {
            byte.write = now;
            byte.read.thread = NOBODY;
            byte.atomic = is_atomic;
        } else {
            Access& read = byte.read;
            bool fresh = ordered(read, now);  // what must come after this read comes after the earlier ones too
            if (!fresh && read.thread != SEVERAL) {
                int warp = read.thread <= -3 ? -3 - read.thread : read.thread / WARP;
                bool same_warp = read.block == now.block && warp == thread / WARP;
                read = {now.block, same_warp ? -3 - warp : SEVERAL, now.interval, now.warp_interval};
            } else if (fresh) {
                read = now;
            }
        }
    }
}

void check_access(void* address, int size, bool is_write, bool is_atomic, void* site) {
    if (!block || !block->launch->check) return;
    char* p = (char*)address;
    Fiber& fiber = *block->current;
    block->access_site = site;
    if (p >= fiber.stack && p + size <= fiber.stack + STACK_BYTES) return;
    char* shared = (char*)shim_dynamic_shared();
    if (p >= shared && p + size <= shared + block->launch->shared_bytes)
        return check_bytes(&block->shared_bytes[p - shared], size, is_write, is_atomic, true, "shared memory", p - shared);
    bool beyond = p >= shared && p < shared + block->launch->shared_bytes + (64 << 10);
    if (!beyond && p >= block->statics && p + size <= block->statics_end)
        return check_bytes(&block->static_bytes[p - block->statics], size, is_write, is_atomic, true, "static shared memory", p - block->statics);
    Launch& launch = *block->launch;
    const Array* nearest = nullptr;
    for (size_t a = 0; a < launch.arrays.size(); a++) {
        const Array& array = launch.arrays[a];
        if (p >= array.base && p + size <= array.base + array.bytes) {
            if (is_write && !array.writable)
                fail("write to a read-only array: block %d thread %d, argument %zu", block->linear, fiber.linear, a);
            return check_bytes(&launch.array_bytes[a][p - array.base], size, is_write, is_atomic, false, "a global array", p - array.base);
        }
        if (array.bytes && array.base <= p && (!nearest || array.base > nearest->base)) nearest = &array;
    }
    Dl_info here, there;
    if (!is_write && dladdr((void*)p, &there) && dladdr((void*)&check_access, &here) && here.dli_fbase == there.dli_fbase) return;
    if (beyond)
        fail("out of bounds: block %d thread %d %s byte %zd of %zu bytes of shared memory", block->linear, fiber.linear,
             is_write ? "writes" : "reads", p - shared, launch.shared_bytes);
    fail("out of bounds: block %d thread %d %s byte %zd of argument %zd, which has %zu bytes", block->linear, fiber.linear,
         is_write ? "writes" : "reads", nearest ? p - nearest->base : -1, nearest ? nearest - launch.arrays.data() : -1,
         nearest ? nearest->bytes : 0);
}

}  // namespace

uint3 thread_index() { return block->current->index; }
uint3 block_index() { return block->index; }
dim3 block_size() { return block->launch->block; }
dim3 grid_size() { return block->launch->grid; }

void sync_threads(int line) {
    Fiber& fiber = *block->current;
    fiber.waiting = true;
    fiber.line = line;
    fiber.at_block_barrier = true;
    block->arrived++;
    release_block_barrier_if_complete();
    wait_for_others(line, true);
}

namespace {
constexpr int SYNC = -1;

// The last lane to come lets the others go.
void meet(WarpOperation operation, unsigned mask, uint64_t bits, int argument, int width, int line) {
    Fiber& fiber = *block->current;
    Warp& warp = block->warps[fiber.linear / WARP];
    int lane = fiber.linear % WARP;
    block->access_site = nullptr;
    if (!(mask >> lane & 1)) fail("warp intrinsic at line %d: lane %d is not in its own mask %#x", line, lane, mask);
    if (warp.arrived && (warp.mask != mask || warp.operation != operation || warp.line != line))
        fail("divergent warp: lanes of block %d, warp %d meet at line %d and at line %d", block->linear, fiber.linear / WARP,
             warp.line, line);
    warp.mask = mask;
    warp.operation = operation;
    warp.line = line;
    warp.width = width;
    warp.bits[lane] = bits;
    warp.argument[lane] = argument;
    warp.arrived |= 1u << lane;
    fiber.waiting = true;
    if (warp.arrived == mask) {
        unsigned votes = 0;
        for (int i = 0; i < WARP; i++)
            if (mask >> i & 1) votes |= (warp.bits[i] != 0) << i;
        size_t first = fiber.linear / WARP * WARP;
        for (int i = 0; i < WARP; i++) {
            if (!(mask >> i & 1)) continue;
            Fiber& other = block->fibers[first + i];
            int start = i / width * width, source = i, value = warp.argument[i];
            if (operation == SHUFFLE) source = start + (value & (width - 1));
            if (operation == SHUFFLE_XOR) source = i ^ value;
            if (operation == SHUFFLE_UP) source = i - value < start ? i : i - value;
            if (operation == SHUFFLE_DOWN) source = i + value >= start + width ? i : i + value;
            if (operation != BALLOT && (source < 0 || source >= WARP || !(mask >> source & 1)))
                fail("warp shuffle at line %d: lane %d reads lane %d, which takes no part", line, i, source);
            other.result = operation == BALLOT ? votes : warp.bits[source];
            other.waiting = false;
        }
        warp.arrived = 0;
    }
    wait_for_others(line, false);
}
}  // namespace

uint64_t warp_exchange(WarpOperation operation, unsigned mask, uint64_t bits, int argument, int width, int line) {
    meet(operation, mask, bits, argument, width, line);
    return block->current->result;
}

void sync_warp(unsigned mask, int line) {
    Fiber& fiber = *block->current;
    Warp& warp = block->warps[fiber.linear / WARP];
    bool last = (warp.arrived | 1u << fiber.linear % WARP) == mask;
    if (last && mask == 0xffffffffu) warp.interval++;
    meet((WarpOperation)SYNC, mask, 0, 0, WARP, line);
}

uint64_t atomic(int operation, void* address, int size, uint64_t bits, uint64_t compare) {
    check_access(address, size, true, true, __builtin_return_address(0));
    uint64_t old = 0, value = bits;
    for (;;) {
        __builtin_memcpy(&old, address, size);
        if (operation == 0) value = old + bits;
        if (operation == 1) value = (int)old > (int)bits ? old : bits;
        if (operation == 3) value = old == compare ? bits : old;
        if (operation == 100 && size == 4) {
            float a, b;
            __builtin_memcpy(&a, &old, 4), __builtin_memcpy(&b, &bits, 4);
            a += b;
            __builtin_memcpy(&value, &a, 4);
        }
        if (operation == 100 && size == 8) {
            double a, b;
            __builtin_memcpy(&a, &old, 8), __builtin_memcpy(&b, &bits, 8);
            a += b;
            __builtin_memcpy(&value, &a, 8);
        }
        if (size == 4) {
            unsigned expected = (unsigned)old;
            if (__atomic_compare_exchange_n((unsigned*)address, &expected, (unsigned)value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return old;
        } else if (__atomic_compare_exchange_n((uint64_t*)address, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            return old;
        }
    }
}

}  // namespace cuda_shim

#define EXPORT extern "C" __attribute__((visibility("default")))

// Runs a grid. `bases`, `bytes`, `writable` describe the arrays behind the pointer arguments. Returns 0, or 1 with a message.
EXPORT int shim_launch(void (*kernel)(void**), void** arguments, const unsigned* grid, const unsigned* threads, size_t shared_bytes,
                       int schedule, unsigned seed, int check, int workers, int n_arrays, char** bases,
                       const size_t* bytes, const unsigned char* writable, char* message) {
    using namespace cuda_shim;
    Launch launch;
    launch.kernel = kernel;
    launch.arguments = arguments;
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {threads[0], threads[1], threads[2]};
    launch.shared_bytes = shared_bytes;
    launch.schedule = (Schedule)schedule;
    launch.seed = seed;
    launch.check = check;
    for (int a = 0; a < n_arrays; a++) {
        launch.arrays.push_back({bases[a], bytes[a], writable[a] != 0});
        launch.array_bytes.emplace_back(check ? bytes[a] : 0);
    }
    std::vector<std::thread> pool;
    for (int w = 0; w < (check ? 1 : workers); w++) pool.emplace_back([&] { work(launch); });
    for (std::thread& worker : pool) worker.join();
    snprintf(message, sizeof launch.message, "%s", launch.message);
    return launch.failed;
}

#define HOOKS(size)                                                                                                         \
    EXPORT void __tsan_read##size(void* p) { cuda_shim::check_access(p, size, false, false, __builtin_return_address(0)); } \
    EXPORT void __tsan_write##size(void* p) { cuda_shim::check_access(p, size, true, false, __builtin_return_address(0)); } \
    EXPORT void __tsan_unaligned_read##size(void* p) { cuda_shim::check_access(p, size, false, false, __builtin_return_address(0)); } \
    EXPORT void __tsan_unaligned_write##size(void* p) { cuda_shim::check_access(p, size, true, false, __builtin_return_address(0)); } \
    EXPORT void __tsan_volatile_read##size(void* p) { cuda_shim::check_access(p, size, false, false, __builtin_return_address(0)); } \
    EXPORT void __tsan_volatile_write##size(void* p) { cuda_shim::check_access(p, size, true, false, __builtin_return_address(0)); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
EXPORT void __tsan_read_range(void* p, long size) { cuda_shim::check_access(p, (int)size, false, false, __builtin_return_address(0)); }
EXPORT void __tsan_write_range(void* p, long size) { cuda_shim::check_access(p, (int)size, true, false, __builtin_return_address(0)); }
EXPORT void __tsan_init() {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit() {}

// Undefined behaviour that GCC can see at run time: misaligned vector accesses, indices past a fixed array, bad shifts.
struct SourceLocation { const char* file; unsigned line, column; };
#define TRAP(name, ...)                                                                                               \
    EXPORT void __ubsan_handle_##name(SourceLocation* at, ##__VA_ARGS__) {                                           \
        cuda_shim::block->access_site = nullptr;                                                                      \
        cuda_shim::fail("undefined behaviour: " #name " at line %u of %s", at->line, at->file ? at->file : "?");      \
    }
TRAP(type_mismatch_v1, uintptr_t) TRAP(out_of_bounds, uintptr_t) TRAP(shift_out_of_bounds, uintptr_t, uintptr_t)
TRAP(divrem_overflow, uintptr_t, uintptr_t)
