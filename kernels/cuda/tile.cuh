// The geometry of every CUDA kernel of fastopt, and the few operations that CUDA has no name for.
//
// A tile is 256 consecutive values of each buffer. One warp owns a tile and each of its 32 lanes holds 8 of the values, in
// packs of PACK neighbours: as many as make 16 bytes of the kernel's widest buffer, so that a lane holds the same values of
// every buffer and a warp's loads cover consecutive bytes. A tile that reaches beyond the last element, and every tile of
// buffers that do not begin at a multiple of their pack, is loaded and stored value by value; lanes beyond the last element
// hold zeros. Values of 8 and 16 bits are held as they lie in memory, several in a word.

#pragma once

typedef long long Index;  // elements are counted in 64 bits everywhere
typedef unsigned int Word;
typedef unsigned short Word16;
typedef unsigned char Word8;
typedef signed char Signed8;

constexpr int TILE = 256, LANES = 32, HELD = TILE / LANES, THREADS = 128;

template <int PACK, typename T>
struct alignas(PACK * sizeof(T)) Pack {
    T values[PACK];
};

__device__ __forceinline__ int lane() { return threadIdx.x % LANES; }

// Index in its tile of this lane's i-th value.
template <int PACK>
__device__ __forceinline__ int position(int i) {
    return (i / PACK * LANES + lane()) * PACK + i % PACK;
}

__device__ __forceinline__ Index first_tile() { return (Index(blockIdx.x) * THREADS + threadIdx.x) / LANES; }

__device__ __forceinline__ Index warps_in_grid() { return Index(gridDim.x) * (THREADS / LANES); }

template <int PACK, typename T>
__device__ __forceinline__ bool packed(const T* buffer) {
    return reinterpret_cast<unsigned long long>(buffer) % (PACK * sizeof(T)) == 0;
}

// What a lane holds of values of 8 or 16 bits: whole words.
template <typename T>
struct Narrow {
    static constexpr int IN_WORD = sizeof(Word) / sizeof(T), BITS = 8 * sizeof(T);
    static constexpr Word MASK = (1u << BITS) - 1;
    Word words[HELD / IN_WORD] = {};

    __device__ __forceinline__ Word operator[](int i) const { return words[i / IN_WORD] >> i % IN_WORD * BITS & MASK; }

    // Keep the low bits of x.
    __device__ __forceinline__ void set(int i, Word x) {
        const int shift = i % IN_WORD * BITS;
        words[i / IN_WORD] = (words[i / IN_WORD] & ~(MASK << shift)) | (x & MASK) << shift;
    }
};

// Take a whole tile of a buffer that is packed.
template <int PACK, typename T>
__device__ __forceinline__ void load(T (&held)[HELD], const T* tile) {
#pragma unroll
    for (int i = 0; i < HELD; i += PACK) {
        const Pack<PACK, T> pack = *reinterpret_cast<const Pack<PACK, T>*>(tile + position<PACK>(i));
#pragma unroll
        for (int k = 0; k < PACK; ++k) held[i + k] = pack.values[k];
    }
}

template <int PACK, typename T>
__device__ __forceinline__ void store(T* tile, const T (&held)[HELD]) {
#pragma unroll
    for (int i = 0; i < HELD; i += PACK) {
        Pack<PACK, T> pack;
#pragma unroll
        for (int k = 0; k < PACK; ++k) pack.values[k] = held[i + k];
        *reinterpret_cast<Pack<PACK, T>*>(tile + position<PACK>(i)) = pack;
    }
}

template <int PACK, typename T>
__device__ __forceinline__ void load(Narrow<T>& held, const T* tile) {
    constexpr int WORDS = PACK / Narrow<T>::IN_WORD;
#pragma unroll
    for (int i = 0; i < HELD; i += PACK) {
        const auto pack = *reinterpret_cast<const Pack<WORDS, Word>*>(tile + position<PACK>(i));
#pragma unroll
        for (int k = 0; k < WORDS; ++k) held.words[i / PACK * WORDS + k] = pack.values[k];
    }
}

template <int PACK, typename T>
__device__ __forceinline__ void store(T* tile, const Narrow<T>& held) {
    constexpr int WORDS = PACK / Narrow<T>::IN_WORD;
#pragma unroll
    for (int i = 0; i < HELD; i += PACK) {
        Pack<WORDS, Word> pack;
#pragma unroll
        for (int k = 0; k < WORDS; ++k) pack.values[k] = held.words[i / PACK * WORDS + k];
        *reinterpret_cast<Pack<WORDS, Word>*>(tile + position<PACK>(i)) = pack;
    }
}

// Take the first `count` values of a tile, wherever it begins.
template <int PACK, typename T>
__device__ __forceinline__ void load(T (&held)[HELD], const T* tile, Index count) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) held[i] = position<PACK>(i) < count ? tile[position<PACK>(i)] : T(0);
}

template <int PACK, typename T>
__device__ __forceinline__ void load(Narrow<T>& held, const T* tile, Index count) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) held.set(i, position<PACK>(i) < count ? tile[position<PACK>(i)] : 0);
}

template <int PACK, typename T, typename H>
__device__ __forceinline__ void store(T* tile, const H& held, Index count) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        if (position<PACK>(i) < count) tile[position<PACK>(i)] = T(held[i]);
    }
}

__device__ __forceinline__ Word larger(Word a, Word b) { return b > a ? b : a; }

// The largest of 32 words, one from each lane, in all lanes.
__device__ __forceinline__ Word warp_max(Word x) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, x);
#else
    for (int distance = LANES / 2; distance; distance /= 2) {
        x = larger(x, __shfl_xor_sync(0xffffffffu, x, distance));
    }
    return x;
#endif
}

// The sum of a tile, folded by halves: a lane's own values that are apart, then lanes, then neighbours of a pack.
template <int PACK, typename T>
__device__ __forceinline__ T tile_total(T (&held)[HELD]) {
#pragma unroll
    for (int half = HELD / 2; half >= PACK; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) held[i] = held[i] + held[i + half];
    }
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) {
#pragma unroll
        for (int i = 0; i < PACK; ++i) held[i] = held[i] + __shfl_xor_sync(0xffffffffu, held[i], distance);
    }
#pragma unroll
    for (int half = PACK / 2; half; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) held[i] = held[i] + held[i + half];
    }
    return held[0];
}

// np.sign: -1, +0 or 1, and NaN for NaN.
template <typename T>
__device__ __forceinline__ T sign(T x) {
    return x > T(0) ? T(1) : x < T(0) ? T(-1) : x == T(0) ? T(0) : x;
}
