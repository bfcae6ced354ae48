// What printed CUDA kernels need to run on a CPU: the language's words, and a player of grids, blocks and warps.
//
// The 32 lanes of a warp are 32 contexts that run in turn, in either order. Each runs until it ends or meets a collective
// operation, where it waits until all have come; a lane that ends while others wait is an error, as on a device it hangs.

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

struct Place {
    unsigned x;
};
static Place threadIdx, blockIdx, gridDim;

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
    int meetings;
    unsigned given[2];  // at this meeting and the one before, which a slower lane may still be reading
};

static Lane lanes[LANES];
static ucontext_t player;
static int current;
static void (*body)(void*);
static void* argument;

static void enter() {
    body(argument);
    lanes[current].ended = true;
}

// Give a word and wait until every lane has given one; returns which of the two given words is this meeting's.
static int meet(unsigned word) {
    Lane& own = lanes[current];
    const int meeting = own.meetings++ % 2;
    own.given[meeting] = word;
    own.waiting = true;
    swapcontext(&own.context, &player);
    return meeting;
}

// Run one warp, the first `count` of its lanes, in ascending or descending order.
static void play(unsigned first_thread, int count, bool descending) {
    for (Lane& lane : lanes) {
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.data();
        lane.context.uc_stack.ss_size = STACK;
        lane.context.uc_link = &player;
        lane.ended = lane.waiting = false;
        lane.meetings = 0;
        makecontext(&lane.context, enter, 0);
    }
    for (int running = count; running;) {
        for (int k = 0; k < count; ++k) {
            current = descending ? count - 1 - k : k;
            threadIdx.x = first_thread + current;
            lanes[current].waiting = false;
            swapcontext(&player, &lanes[current].context);
        }
        running = 0;
        for (const Lane& lane : lanes) running += lane.waiting;
        if (running % count) {
            fprintf(stderr, "a lane ended while others of its warp wait for it\n");
            abort();
        }
    }
}

// Run the blocks of a grid from `first` on, as cuLaunchKernel does: `arguments` points to each argument.
template <typename... A, size_t... I>
void launch(void (*kernel)(A...), unsigned blocks, unsigned first, int threads, void** arguments, bool descending,
            std::index_sequence<I...>) {
    auto call = [=] { kernel(*static_cast<A*>(arguments[I])...); };
    body = [](void* closure) { (*static_cast<decltype(call)*>(closure))(); };
    argument = &call;
    gridDim.x = blocks;
    for (unsigned k = 0; k < blocks - first; ++k) {
        blockIdx.x = descending ? blocks - 1 - k : first + k;
        for (int t = 0; t < threads; t += LANES) play(t, std::min(LANES, threads - t), descending);
    }
    argument = nullptr;
}

template <typename... A>
void launch(void (*kernel)(A...), unsigned blocks, unsigned first, int threads, void** arguments, bool descending) {
    launch(kernel, blocks, first, threads, arguments, descending, std::index_sequence_for<A...>());
}

}  // namespace host

inline void __syncwarp() { host::meet(0); }

inline unsigned __shfl_xor_sync(unsigned, unsigned x, int distance) {
    const int meeting = host::meet(x);
    return host::lanes[host::current ^ distance].given[meeting];
}

inline unsigned __reduce_max_sync(unsigned, unsigned x) {
    const int meeting = host::meet(x);
    unsigned largest = 0;
    for (const host::Lane& lane : host::lanes) largest = std::max(largest, lane.given[meeting]);
    return largest;
}
