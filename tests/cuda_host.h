// Runs printed CUDA kernels on the host: defines the CUDA keywords they use, and runs grids, blocks and warps in turn.
//
// The 32 lanes of a warp are 32 contexts that run one after the other, in ascending or descending order. Each runs until
// it returns or reaches a warp-collective operation, where it waits until all lanes have reached it. If a lane returns
// while others wait, the run aborts, because on a device the warp would hang.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

using std::ceil, std::copysign, std::fabs, std::floor, std::rint, std::sqrt, std::trunc;

struct Dim3 {
    unsigned x;
};
static Dim3 threadIdx, blockIdx, gridDim;

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline double __longlong_as_double(long long bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

namespace host {

constexpr int LANES = 32, STACK = 64 << 10;

struct Lane {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    bool ended, waiting;
    int exchanges;      // number of collective operations so far
    unsigned words[2];  // of this exchange and of the previous one, which another lane may not have read yet
};

static Lane lanes[LANES];
static ucontext_t scheduler;
static int current;
static void (*body)(void*);
static void* argument;

static void lane_main() {
    body(argument);
    lanes[current].ended = true;
}

// Publish a word and wait until every lane of the warp has; return the index in `Lane::words` of this exchange's words.
static int exchange(unsigned word) {
    Lane& own = lanes[current];
    const int slot = own.exchanges++ % 2;
    own.words[slot] = word;
    own.waiting = true;
    swapcontext(&own.context, &scheduler);
    return slot;
}

// Run the first `count` lanes of a warp, in ascending or descending order.
static void run_warp(unsigned first_thread, int count, bool descending) {
    for (Lane& lane : lanes) {
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.data();
        lane.context.uc_stack.ss_size = STACK;
        lane.context.uc_link = &scheduler;
        lane.ended = lane.waiting = false;
        lane.exchanges = 0;
        makecontext(&lane.context, lane_main, 0);
    }
    for (int running = count; running;) {
        for (int k = 0; k < count; ++k) {
            current = descending ? count - 1 - k : k;
            threadIdx.x = first_thread + current;
            lanes[current].waiting = false;
            swapcontext(&scheduler, &lanes[current].context);
        }
        running = 0;
        for (const Lane& lane : lanes) running += lane.waiting;
        if (running % count) {
            fprintf(stderr, "a lane returned while others of its warp wait at a collective operation\n");
            abort();
        }
    }
}

// Run the blocks of a grid, from number `first` on. As for cuLaunchKernel, `arguments` is an array of pointers, one to
// each argument.
template <typename... A, size_t... I>
void launch(void (*kernel)(A...), unsigned blocks, unsigned first, int threads, void** arguments, bool descending,
            std::index_sequence<I...>) {
    auto call = [=] { kernel(*static_cast<A*>(arguments[I])...); };
    body = [](void* closure) { (*static_cast<decltype(call)*>(closure))(); };
    argument = &call;
    gridDim.x = blocks;
    for (unsigned k = 0; k < blocks - first; ++k) {
        blockIdx.x = descending ? blocks - 1 - k : first + k;
        for (int t = 0; t < threads; t += LANES) run_warp(t, std::min(LANES, threads - t), descending);
    }
    argument = nullptr;
}

template <typename... A>
void launch(void (*kernel)(A...), unsigned blocks, unsigned first, int threads, void** arguments, bool descending) {
    launch(kernel, blocks, first, threads, arguments, descending, std::index_sequence_for<A...>());
}

}  // namespace host

inline void __syncwarp() { host::exchange(0); }

inline unsigned __shfl_xor_sync(unsigned, unsigned x, int distance) {
    const int slot = host::exchange(x);
    return host::lanes[host::current ^ distance].words[slot];
}

inline float __shfl_xor_sync(unsigned all, float x, int distance) {
    return __uint_as_float(__shfl_xor_sync(all, __float_as_uint(x), distance));
}

inline double __shfl_xor_sync(unsigned all, double x, int distance) {
    unsigned words[2];
    memcpy(words, &x, 8);
    for (unsigned& word : words) word = __shfl_xor_sync(all, word, distance);
    memcpy(&x, words, 8);
    return x;
}

inline unsigned __reduce_max_sync(unsigned, unsigned x) {
    const int slot = host::exchange(x);
    unsigned largest = 0;
    for (const host::Lane& lane : host::lanes) largest = std::max(largest, lane.words[slot]);
    return largest;
}
