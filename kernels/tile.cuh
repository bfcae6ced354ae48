// The geometry of every CUDA kernel of fastopt, and the few operations that CUDA has no name for.
//
// A tile is 256 consecutive values of each buffer. One warp owns a tile and each of its 32 lanes holds 8 of the values, in
// packs of 16 bytes, so that a warp's load of one pack a lane covers 512 consecutive bytes. A tile that reaches beyond the
// last element, and every tile of buffers that do not begin at a multiple of 16 bytes, is loaded and stored value by value;
// lanes beyond the last element hold zeros.

#pragma once

typedef long long Index;  // elements are counted in 64 bits everywhere
typedef unsigned int Word;

constexpr int TILE = 256, LANES = 32, HELD = TILE / LANES, THREADS = 256;

// Values of one load or store of a lane.
template <typename T>
constexpr int PACK = 16 / sizeof(T);

template <typename T>
struct alignas(16) Pack {
    T values[PACK<T>];
};

__device__ __forceinline__ int lane() { return threadIdx.x % LANES; }

// Place in its tile of this lane's i-th value.
template <typename T>
__device__ __forceinline__ int place(int i) {
    return (i / PACK<T> * LANES + lane()) * PACK<T> + i % PACK<T>;
}

__device__ __forceinline__ Index first_tile() { return (Index(blockIdx.x) * THREADS + threadIdx.x) / LANES; }

__device__ __forceinline__ Index warps_in_grid() { return Index(gridDim.x) * (THREADS / LANES); }

template <typename T>
__device__ __forceinline__ bool packed(const T* buffer) {
    return reinterpret_cast<unsigned long long>(buffer) % 16 == 0;
}

// Take a whole tile of a buffer that is packed.
template <typename T>
__device__ __forceinline__ void load(T (&held)[HELD], const T* tile) {
#pragma unroll
    for (int i = 0; i < HELD; i += PACK<T>) {
        const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(tile + place<T>(i));
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) held[i + k] = pack.values[k];
    }
}

template <typename T>
__device__ __forceinline__ void store(T* tile, const T (&held)[HELD]) {
#pragma unroll
    for (int i = 0; i < HELD; i += PACK<T>) {
        Pack<T> pack;
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) pack.values[k] = held[i + k];
        *reinterpret_cast<Pack<T>*>(tile + place<T>(i)) = pack;
    }
}

// Take the first `count` values of a tile, wherever it begins.
template <typename T>
__device__ __forceinline__ void load(T (&held)[HELD], const T* tile, Index count) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) held[i] = place<T>(i) < count ? tile[place<T>(i)] : T(0);
}

template <typename T>
__device__ __forceinline__ void store(T* tile, const T (&held)[HELD], Index count) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        if (place<T>(i) < count) tile[place<T>(i)] = held[i];
    }
}

// The largest of 32 words, one from each lane, in all lanes.
__device__ __forceinline__ Word warp_max(Word x) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, x);
#else
    for (int distance = LANES / 2; distance; distance /= 2) {
        const Word other = __shfl_xor_sync(0xffffffffu, x, distance);
        x = other > x ? other : x;
    }
    return x;
#endif
}

// np.sign: -1, +0 or 1, and NaN for NaN.
template <typename T>
__device__ __forceinline__ T sign(T x) {
    return x > T(0) ? T(1) : x < T(0) ? T(-1) : x == T(0) ? T(0) : x;
}
