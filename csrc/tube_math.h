// Arithmetic that the CPU and the CUDA kernels share, line for line what dsvid/ops/reference.py specifies.
// Rounding is part of it: no expression here may be contracted to a fused multiply-add (build.py passes the flags).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define DSVID_BOTH __host__ __device__ __forceinline__
#else
#define DSVID_BOTH static inline
#endif

enum { STREAM_TUBE_MASK = 1, STREAM_CELL_START = 2 };  // dsvid/ops/counter.py has the same numbers

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195).
DSVID_BOTH uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

DSVID_BOTH uint64_t stream_start(int64_t seed, uint64_t stream) {
    return mix64((uint64_t)seed + (stream + 1) * 0xd1342543de82ef95ull);
}

DSVID_BOTH uint64_t counter_bits(uint64_t start, uint64_t counter) {
    return mix64(start + (counter + 1) * 0x9e3779b97f4a7c15ull);
}

// 63 bits, because the plain-torch version sorts signed integers.
DSVID_BOTH int64_t site_key(uint64_t start, int64_t site) {
    return (int64_t)(counter_bits(start, (uint64_t)site) >> 1);
}

DSVID_BOTH int cell_start(int64_t seed) { return (int)(counter_bits(stream_start(seed, STREAM_CELL_START), 0) >> 62); }

DSVID_BOTH int place_in_cell(int64_t y, int64_t x) { return (int)((y & 1) * 2 + (x & 1)); }

// VideoMAE V2's running cell (arXiv 2303.16727): the queue of `drop` ones and 4-drop zeros, rotated left by phase + 1,
// where phase = start + slot.
DSVID_BOTH bool cell_drops(int64_t phase, int place, int64_t drop) { return (place + phase + 1) % 4 < drop; }

// out = ((x - whole) - frac) * inv for a byte x: x - whole is exact, so a flat bright patch loses nothing to
// cancellation. By channel; the fourth value is there so that one vector load fits.
struct Scale {
    float whole[4], frac[4], inv[4];
};

// Norm-pix of one channel from exact integer sums over n pixels: mean and unbiased deviation of 0..255 values.
// 255e-6 is VideoMAE's 1e-6 (added to the deviation of 0..1 values) in these units.
DSVID_BOTH void scale_of_sums(int64_t sum, int64_t sum_of_squares, int64_t n, float* whole, float* frac, float* inv) {
    const int64_t nearest = (2 * sum + n) / (2 * n);
    const double variance = (double)(n * sum_of_squares - sum * sum) / (double)(n * (n - 1));
    *whole = (float)nearest;
    *frac = (float)((double)(sum - nearest * n) / (double)n);
    *inv = (float)(1.0 / (sqrt(variance) + 255e-6));
}

DSVID_BOTH float scaled(uint8_t x, float whole, float frac, float inv) { return (((float)x - whole) - frac) * inv; }

DSVID_BOTH uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Round to nearest even. NaN is not handled: `scaled` never gives one.
DSVID_BOTH uint16_t to_bfloat16(float value) {
    const uint32_t bits = float_bits(value);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Round to nearest even, with subnormals and infinity.
DSVID_BOTH uint16_t to_float16(float value) {
    const uint32_t bits = float_bits(value);
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
    const uint32_t exponent = magnitude >> 23;
    uint32_t half, lost, lost_bits;
    if (exponent >= 113) {
        lost_bits = 13;
        half = (magnitude - (112u << 23)) >> 13;
        lost = magnitude & 0x1fffu;
    } else {
        if (exponent < 102) return sign;
        lost_bits = 126 - exponent;
        const uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
        half = fraction >> lost_bits;
        lost = fraction & ((1u << lost_bits) - 1u);
    }
    const uint32_t middle = 1u << (lost_bits - 1);
    if (lost > middle || (lost == middle && (half & 1u))) ++half;
    return (uint16_t)(sign | half);
}
