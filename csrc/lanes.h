// The two inner loops of the CPU gather and the table through which an instruction set is chosen at run time.
#pragma once

#include <stdint.h>

#include "tube.h"
#include "tube_math.h"

// A token is staged as `kGroup`-padded contiguous bytes, zeros behind the end (they add nothing to a sum); loads may
// run kSlack bytes further. 48 is the smallest run that is whole both in channels (3) and in 16-lane registers.
constexpr int64_t kGroup = 48;
constexpr int64_t kSlack = 64;
// Lane accumulators are 32 bits: 2^20 bytes / 24 lanes * 255^2 < 2^32.
constexpr int64_t kMaxTokenBytes = 1 << 20;

// Sum and sum of squares per channel of interleaved bytes; `padded` is a multiple of kGroup.
using SumsFn = void (*)(const uint8_t* token, int64_t padded, uint64_t sum[3], uint64_t squares[3]);
// out[i] = scaled(values[i], scale[(i % 3)]). `streamed`: out is 64-byte aligned and will not be read soon.
using WriteFn = void (*)(const uint8_t* values, int64_t count, const Scale& scale, void* out, bool streamed);

// Interleaved bytes of three channels -> three planes of `pixels` bytes, one after the other.
using SplitFn = void (*)(const uint8_t* token, int64_t pixels, uint8_t* planes);

struct Lanes {
    SumsFn sums;
    SplitFn split;
    WriteFn write[3];  // by dtype
};

inline void store_scaled(float value, float* out) { *out = value; }
struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
inline void store_scaled(float value, Bfloat16* out) { out->bits = to_bfloat16(value); }
inline void store_scaled(float value, Float16* out) { out->bits = to_float16(value); }

template <class Out>
void write_portable(const uint8_t* values, int64_t count, const Scale& scale, void* out_bytes, bool) {
    float whole[kGroup], frac[kGroup], inv[kGroup];
    for (int64_t lane = 0; lane < kGroup; ++lane) {
        whole[lane] = scale.whole[lane % 3];
        frac[lane] = scale.frac[lane % 3];
        inv[lane] = scale.inv[lane % 3];
    }
    Out* out = static_cast<Out*>(out_bytes);
    int64_t i = 0;
    for (; i + kGroup <= count; i += kGroup)
        for (int64_t lane = 0; lane < kGroup; ++lane)
            store_scaled(scaled(values[i + lane], whole[lane], frac[lane], inv[lane]), out + i + lane);
    for (int64_t lane = 0; i + lane < count; ++lane)
        store_scaled(scaled(values[i + lane], whole[lane], frac[lane], inv[lane]), out + i + lane);
}

inline void sums_portable(const uint8_t* token, int64_t padded, uint64_t sum[3], uint64_t squares[3]) {
    uint32_t lane_sum[kGroup] = {}, lane_squares[kGroup] = {};
    for (int64_t i = 0; i < padded; i += kGroup)
        for (int64_t lane = 0; lane < kGroup; ++lane) {
            const uint32_t x = token[i + lane];
            lane_sum[lane] += x;
            lane_squares[lane] += x * x;
        }
    for (int c = 0; c < 3; ++c) sum[c] = squares[c] = 0;
    for (int64_t lane = 0; lane < kGroup; ++lane) {
        sum[lane % 3] += lane_sum[lane];
        squares[lane % 3] += lane_squares[lane];
    }
}

// The loop that the compiler turns into byte shuffles where the target has them.
#define DSVID_SPLIT_LOOP(token, pixels, planes)          \
    for (int64_t i = 0; i < (pixels); ++i) {             \
        (planes)[i] = (token)[3 * i];                    \
        (planes)[(pixels) + i] = (token)[3 * i + 1];     \
        (planes)[2 * (pixels) + i] = (token)[3 * i + 2]; \
    }

inline void split_portable(const uint8_t* __restrict__ token, int64_t pixels, uint8_t* __restrict__ planes) {
    DSVID_SPLIT_LOOP(token, pixels, planes)
}

inline constexpr Lanes kPortableLanes = {
    sums_portable, split_portable, {write_portable<float>, write_portable<Bfloat16>, write_portable<Float16>}};
