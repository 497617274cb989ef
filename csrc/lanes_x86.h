// AVX2 and AVX-512 versions of the two inner loops, same bits as the portable ones. Function-level targets, so that one
// compiler call builds them all and the file still loads on a processor that has none.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DSVID_X86_LANES 1

#include <immintrin.h>

#include "lanes.h"

#define DSVID_AVX2 __attribute__((target("avx2,f16c")))
#define DSVID_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

// ---- AVX2: registers of 8 lanes; 24 bytes are three of them, whose first channels are 0, 2, 1.

DSVID_AVX2 inline __m256i widen8(const uint8_t* bytes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}

DSVID_AVX2 inline void put8(__m256 value, float* out, bool streamed) {
    if (streamed)
        _mm256_stream_ps(out, value);
    else
        _mm256_storeu_ps(out, value);
}

DSVID_AVX2 inline void put16bits8(__m128i value, void* out, bool streamed) {
    if (streamed)
        _mm_stream_si128(static_cast<__m128i*>(out), value);
    else
        _mm_storeu_si128(static_cast<__m128i*>(out), value);
}

DSVID_AVX2 inline void put8(__m256 value, Bfloat16* out, bool streamed) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i high = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    put16bits8(_mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)), out, streamed);
}

DSVID_AVX2 inline void put8(__m256 value, Float16* out, bool streamed) {
    put16bits8(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT), out, streamed);
}

// The scale of every lane, for the three registers of a run.
struct Scale8 {
    __m256 whole[3], frac[3], inv[3];
};

DSVID_AVX2 inline void spread8(const float* channels, __m256* lanes) {
    const __m256 three = _mm256_castps128_ps256(_mm_loadu_ps(channels));
    lanes[0] = _mm256_permutevar8x32_ps(three, _mm256_setr_epi32(0, 1, 2, 0, 1, 2, 0, 1));
    lanes[1] = _mm256_permutevar8x32_ps(three, _mm256_setr_epi32(2, 0, 1, 2, 0, 1, 2, 0));
    lanes[2] = _mm256_permutevar8x32_ps(three, _mm256_setr_epi32(1, 2, 0, 1, 2, 0, 1, 2));
}

template <class Out>
DSVID_AVX2 void write_avx2(const uint8_t* values, int64_t count, const Scale& scale, void* out_bytes, bool streamed) {
    Scale8 s;
    spread8(scale.whole, s.whole);
    spread8(scale.frac, s.frac);
    spread8(scale.inv, s.inv);
    Out* out = static_cast<Out*>(out_bytes);
    int64_t i = 0;
    for (; i + 24 <= count; i += 24)
        for (int k = 0; k < 3; ++k) {
            const __m256 x = _mm256_cvtepi32_ps(widen8(values + i + 8 * k));
            const __m256 centred = _mm256_sub_ps(_mm256_sub_ps(x, s.whole[k]), s.frac[k]);
            put8(_mm256_mul_ps(centred, s.inv[k]), out + i + 8 * k, streamed);
        }
    for (; i < count; ++i)
        store_scaled(scaled(values[i], scale.whole[i % 3], scale.frac[i % 3], scale.inv[i % 3]), out + i);
}

DSVID_AVX2 inline void sums_avx2(const uint8_t* token, int64_t padded, uint64_t sum[3], uint64_t squares[3]) {
    __m256i s[3], q[3];
    for (int k = 0; k < 3; ++k) s[k] = q[k] = _mm256_setzero_si256();
    for (int64_t i = 0; i < padded; i += 24)
        for (int k = 0; k < 3; ++k) {
            const __m256i x = widen8(token + i + 8 * k);
            s[k] = _mm256_add_epi32(s[k], x);
            q[k] = _mm256_add_epi32(q[k], _mm256_madd_epi16(x, x));  // the upper half of a lane is 0: x*x
        }
    for (int c = 0; c < 3; ++c) sum[c] = squares[c] = 0;
    for (int k = 0; k < 3; ++k) {
        alignas(32) uint32_t lane_sum[8], lane_squares[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lane_sum), s[k]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(lane_squares), q[k]);
        for (int lane = 0; lane < 8; ++lane) {
            sum[(8 * k + lane) % 3] += lane_sum[lane];
            squares[(8 * k + lane) % 3] += lane_squares[lane];
        }
    }
}

DSVID_AVX2 inline void split_avx2(const uint8_t* __restrict__ token, int64_t pixels,
                                  uint8_t* __restrict__ planes){DSVID_SPLIT_LOOP(token, pixels, planes)}

// ---- AVX-512: registers of 16 lanes; 48 bytes are three of them, whose first channels are 0, 1, 2.

DSVID_AVX512 inline __m512i widen16(const uint8_t* bytes) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

DSVID_AVX512 inline void put16(__m512 value, float* out, bool streamed) {
    if (streamed)
        _mm512_stream_ps(out, value);
    else
        _mm512_storeu_ps(out, value);
}

DSVID_AVX512 inline void put16bits16(__m256i value, void* out, bool streamed) {
    if (streamed)
        _mm256_stream_si256(static_cast<__m256i*>(out), value);
    else
        _mm256_storeu_si256(static_cast<__m256i*>(out), value);
}

DSVID_AVX512 inline __m256i round16(__m512 value, Bfloat16*) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16));
}

DSVID_AVX512 inline __m256i round16(__m512 value, Float16*) {
    return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
}

template <class Out>
DSVID_AVX512 inline void put16(__m512 value, Out* out, bool streamed) {
    put16bits16(round16(value, out), out, streamed);
}

struct Scale16 {
    __m512 whole[3], frac[3], inv[3];
};

DSVID_AVX512 inline void spread16(const float* channels, __m512* lanes) {
    const __m512 three = _mm512_castps128_ps512(_mm_loadu_ps(channels));
    lanes[0] = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0), three);
    lanes[1] = _mm512_permutexvar_ps(_mm512_setr_epi32(1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1), three);
    lanes[2] = _mm512_permutexvar_ps(_mm512_setr_epi32(2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2), three);
}

DSVID_AVX512 inline __m512 scaled16(const uint8_t* values, const Scale16& s, int k) {
    const __m512 x = _mm512_cvtepi32_ps(widen16(values));
    return _mm512_mul_ps(_mm512_sub_ps(_mm512_sub_ps(x, s.whole[k]), s.frac[k]), s.inv[k]);
}

template <class Out>
DSVID_AVX512 void write_avx512(const uint8_t* values, int64_t count, const Scale& scale, void* out_bytes,
                               bool streamed) {
    Scale16 s;
    spread16(scale.whole, s.whole);
    spread16(scale.frac, s.frac);
    spread16(scale.inv, s.inv);
    Out* out = static_cast<Out*>(out_bytes);
    int64_t i = 0;
    for (; i + 48 <= count; i += 48)
        for (int k = 0; k < 3; ++k) put16(scaled16(values + i + 16 * k, s, k), out + i + 16 * k, streamed);
    for (int k = 0; k < 2 && i + 16 <= count; ++k, i += 16) put16(scaled16(values + i, s, k), out + i, streamed);
    for (; i < count; ++i)
        store_scaled(scaled(values[i], scale.whole[i % 3], scale.frac[i % 3], scale.inv[i % 3]), out + i);
}

DSVID_AVX512 inline __m512i widen_sum(__m512i lanes) {
    const __m512i low = _mm512_and_si512(lanes, _mm512_set1_epi64(0xffffffff));
    return _mm512_add_epi64(low, _mm512_srli_epi64(lanes, 32));
}

DSVID_AVX512 inline void sums_avx512(const uint8_t* token, int64_t padded, uint64_t sum[3], uint64_t squares[3]) {
    __m512i s[3], q[3];
    for (int k = 0; k < 3; ++k) s[k] = q[k] = _mm512_setzero_si512();
    for (int64_t i = 0; i < padded; i += 48)
        for (int k = 0; k < 3; ++k) {
            const __m512i x = widen16(token + i + 16 * k);
            s[k] = _mm512_add_epi32(s[k], x);
            q[k] = _mm512_add_epi32(q[k], _mm512_madd_epi16(x, x));
        }
    // Lane j of register k holds channel (k + j) % 3; third[r] has the lanes j = r (mod 3).
    const __mmask16 third[3] = {0x9249, 0x2492, 0x4924};
    for (int c = 0; c < 3; ++c) {
        __m512i of_sum = _mm512_setzero_si512(), of_squares = of_sum;
        for (int k = 0; k < 3; ++k) {
            const __mmask16 lanes = third[(c - k + 3) % 3];
            of_sum = _mm512_mask_add_epi32(of_sum, lanes, of_sum, s[k]);
            of_squares = _mm512_add_epi64(of_squares, widen_sum(_mm512_maskz_mov_epi32(lanes, q[k])));
        }
        sum[c] = static_cast<uint32_t>(_mm512_reduce_add_epi32(of_sum));
        squares[c] = static_cast<uint64_t>(_mm512_reduce_add_epi64(of_squares));
    }
}

#if (defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && __GNUC__ >= 10)
#define DSVID_X86_BFLOAT16 1
// The processor's own rounding: the same bits, since `scaled` gives no NaN and no subnormal (which it would flush).
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))) inline void write_avx512_bfloat16(
    const uint8_t* values, int64_t count, const Scale& scale, void* out_bytes, bool streamed) {
    Scale16 s;
    spread16(scale.whole, s.whole);
    spread16(scale.frac, s.frac);
    spread16(scale.inv, s.inv);
    Bfloat16* out = static_cast<Bfloat16*>(out_bytes);
    int64_t i = 0;
    for (; i + 48 <= count; i += 48)
        for (int k = 0; k < 3; ++k)
            put16bits16((__m256i)_mm512_cvtneps_pbh(scaled16(values + i + 16 * k, s, k)), out + i + 16 * k, streamed);
    for (int k = 0; k < 2 && i + 16 <= count; ++k, i += 16)
        put16bits16((__m256i)_mm512_cvtneps_pbh(scaled16(values + i, s, k)), out + i, streamed);
    for (; i < count; ++i)
        store_scaled(scaled(values[i], scale.whole[i % 3], scale.frac[i % 3], scale.inv[i % 3]), out + i);
}

inline constexpr Lanes kAvx512Bfloat16Lanes = {
    sums_avx512, split_avx2, {write_avx512<float>, write_avx512_bfloat16, write_avx512<Float16>}};
#endif

inline constexpr Lanes kAvx2Lanes = {
    sums_avx2, split_avx2, {write_avx2<float>, write_avx2<Bfloat16>, write_avx2<Float16>}};
inline constexpr Lanes kAvx512Lanes = {
    sums_avx512, split_avx2, {write_avx512<float>, write_avx512<Bfloat16>, write_avx512<Float16>}};

#endif
