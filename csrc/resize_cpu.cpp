// Resampling of uint8 clips with AVX2. One thread, no global state: safe in forked loader workers. Integer sums, so
// that every order of additions gives the same bytes.
#include "resize.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#define DSVID_AVX2 __attribute__((target("avx2")))

namespace {

constexpr int64_t kPixels = 4;   // of a group in a row: 12 bytes, the lanes of two registers with one to spare each
constexpr int64_t kBytes = 32;   // of a block in a column
constexpr int64_t kLoaded = 16;  // bytes read from a pixel on, of which two taps use 6

uint8_t rounded(int32_t sum, int64_t precision) {
    return static_cast<uint8_t>(std::min(255, std::max(0, (sum + (1 << (precision - 1))) >> precision)));
}

int32_t both(const int16_t* pair) {
    int32_t value;
    std::memcpy(&value, pair, sizeof value);
    return value;
}

// The input of an axis-x pass: `rows` rows, some of them copied to where bytes behind them may be read.
struct Rows {
    const uint8_t* first;
    int64_t stride, count;
};

DSVID_AVX2 inline __m256i two_pixels(const uint8_t* one, const uint8_t* two) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(one));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128(reinterpret_cast<const __m128i*>(two)),
                                   1);
}

DSVID_AVX2 inline __m256i pair_weights(const int16_t* one, const int16_t* two) {
    const int32_t low = both(one), high = both(two);
    return _mm256_setr_epi32(low, low, low, 0, high, high, high, 0);
}

// Red, green and blue of pixels `pixel` and `pixel` + 1 behind the loaded place, as 16-bit values side by side.
DSVID_AVX2 inline __m256i spreading(int pixel) {
    const __m128i first = _mm_setr_epi8(0, -128, 3, -128, 1, -128, 4, -128, 2, -128, 5, -128, -128, -128, -128, -128);
    return _mm256_broadcastsi128_si256(_mm_add_epi8(first, _mm_set1_epi8(static_cast<char>(3 * pixel))));
}

// Four output pixels of every row, each of `kPairs` times two taps (0: of any number). `end`: whether no byte may be
// written behind them.
template <int kPairs>
DSVID_AVX2 void resample_group(const Rows& rows, const dsvid_axis& axis, int64_t at, uint8_t* out, int64_t out_stride,
                               bool end) {
    const __m128i dense = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m256i half = _mm256_set1_epi32(1 << (axis.precision - 1));
    const __m128i shift = _mm_cvtsi64_si128(axis.precision);
    const __m256i spread = spreading(0), spread_next = spreading(2);
    const int16_t* weights[4];
    const uint8_t* in[4];
    __m256i held[2][kPairs ? kPairs : 1];
    for (int i = 0; i < 4; ++i) {
        weights[i] = axis.weights + (at + i) * axis.taps;
        in[i] = rows.first + 3 * axis.first[at + i];
    }
    for (int side = 0; side < 2; ++side)
        for (int pair = 0; pair < kPairs; ++pair)
            held[side][pair] = pair_weights(weights[2 * side] + 2 * pair, weights[2 * side + 1] + 2 * pair);
    for (int64_t y = 0, row = 0; y < rows.count; ++y, row += rows.stride, out += out_stride) {
        __m256i sums[2] = {half, half};
        for (int side = 0; side < 2; ++side) {
            const uint8_t *one = in[2 * side] + row, *two = in[2 * side + 1] + row;
            __m256i& sum = sums[side];
            if (kPairs) {
                const __m256i bytes = two_pixels(one, two);  // five pixels each: up to four taps
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, spread), held[side][0]));
                if (kPairs == 2)
                    sum = _mm256_add_epi32(
                        sum, _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, spread_next), held[side][kPairs - 1]));
                continue;
            }
            for (int64_t tap = 0; tap < axis.taps; tap += 2) {
                const __m256i taps = _mm256_shuffle_epi8(two_pixels(one + 3 * tap, two + 3 * tap), spread);
                const __m256i factor = pair_weights(weights[2 * side] + tap, weights[2 * side + 1] + tap);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(taps, factor));
            }
        }
        // packing works within 16 bytes: pixels 0, 2 and 1, 3 come to lie side by side
        const __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(sums[0], shift), _mm256_sra_epi32(sums[1], shift));
        const __m256i bytes = _mm256_packus_epi16(words, words);
        const __m128i pixels = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
        const __m128i result = _mm_shuffle_epi8(pixels, dense);
        if (!end) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), result);  // the next group overwrites the last four bytes
        } else {
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out), result);
            const int32_t last = _mm_extract_epi32(result, 2);
            std::memcpy(out + 8, &last, sizeof last);
        }
    }
}

void resample_pixel(const Rows& rows, const dsvid_axis& axis, int64_t at, uint8_t* out, int64_t out_stride) {
    const int16_t* weights = axis.weights + at * axis.taps;
    for (int64_t y = 0; y < rows.count; ++y)
        for (int64_t channel = 0; channel < 3; ++channel) {
            const uint8_t* in = rows.first + y * rows.stride + 3 * axis.first[at] + channel;
            int32_t sum = 0;
            for (int64_t tap = 0; tap < axis.taps; ++tap) sum += weights[tap] * in[3 * tap];
            out[y * out_stride + channel] = rounded(sum, axis.precision);
        }
}

void resample_x(const Rows& rows, const dsvid_axis& axis, int64_t width, uint8_t* out) {
    const int64_t stride = 3 * width;
    int64_t at = 0;
    // groups outside and rows inside: setting up a group costs more than a dozen rows of it
    for (; at + kPixels <= width; at += kPixels) {
        const bool end = 3 * at + kLoaded > stride;
        if (axis.taps == 2)
            resample_group<1>(rows, axis, at, out + 3 * at, stride, end);
        else if (axis.taps == 4)
            resample_group<2>(rows, axis, at, out + 3 * at, stride, end);
        else
            resample_group<0>(rows, axis, at, out + 3 * at, stride, end);
    }
    for (; at < width; ++at) resample_pixel(rows, axis, at, out + 3 * at, stride);
}

DSVID_AVX2 inline void add_pair(__m256i* sums, __m256i one, __m256i two, __m256i weights) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i low = _mm256_unpacklo_epi8(one, two), high = _mm256_unpackhi_epi8(one, two);
    const __m256i pairs[4] = {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                              _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs[i], weights));
}

DSVID_AVX2 void resample_block(const uint8_t* in, int64_t stride, const dsvid_axis& axis, int64_t at, int64_t last,
                               uint8_t* out) {
    const __m256i half = _mm256_set1_epi32(1 << (axis.precision - 1));
    const __m128i shift = _mm_cvtsi64_si128(axis.precision);
    __m256i sums[4] = {half, half, half, half};
    for (int64_t tap = 0; tap < axis.taps; tap += 2) {
        const int64_t upper = std::min(axis.first[at] + tap, last), lower = std::min(axis.first[at] + tap + 1, last);
        add_pair(sums, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + upper * stride)),
                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + lower * stride)),
                 _mm256_set1_epi32(both(axis.weights + at * axis.taps + tap)));
    }
    for (__m256i& sum : sums) sum = _mm256_sra_epi32(sum, shift);
    // unpacking and packing both work within 16 bytes: the order is that of the row again
    const __m256i packed =
        _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
}

void resample_y(const Rows& rows, const dsvid_axis& axis, int64_t bytes, int64_t height, uint8_t* out) {
    const int64_t last = rows.count - 1;
    for (int64_t at = 0; at < height; ++at, out += bytes) {
        int64_t x = 0;
        for (; x + kBytes <= bytes; x += kBytes) resample_block(rows.first + x, rows.stride, axis, at, last, out + x);
        if (x < bytes && bytes >= kBytes) {  // once more over a part of the block before
            x = bytes - kBytes;
            resample_block(rows.first + x, rows.stride, axis, at, last, out + x);
            continue;
        }
        for (; x < bytes; ++x) {
            int32_t sum = 0;
            for (int64_t tap = 0; tap < axis.taps; ++tap)
                sum += axis.weights[at * axis.taps + tap] *
                       rows.first[std::min(axis.first[at] + tap, last) * rows.stride + x];
            out[x] = rounded(sum, axis.precision);
        }
    }
}

// Bytes of a row up to which the x pass may read, some of them behind its pixels.
int64_t reach(const dsvid_resize_args& a) {
    const int64_t first = *std::max_element(a.x.first, a.x.first + a.out_width);
    return 3 * (first + a.x.taps - 2) + kLoaded;
}

class Resize {
 public:
    explicit Resize(const dsvid_resize_args& args) : a_(args), out_row_(3 * args.out_width) {
        if (!a_.x.first) return;
        reach_ = std::max(reach(a_), 3 * a_.width);
        end_ = a_.source + (a_.frames - 1) * a_.frame_stride + (a_.height - 1) * a_.row_stride + 3 * a_.width;
        if (a_.y.first) between_.resize(a_.height * out_row_);
    }

    void run() {
        for (int64_t frame = 0; frame < a_.frames; ++frame) {
            const Rows source{a_.source + frame * a_.frame_stride, a_.row_stride, a_.height};
            uint8_t* out = a_.out + frame * a_.out_height * out_row_;
            if (!a_.x.first) {
                resample_y(source, a_.y, out_row_, a_.out_height, out);
                continue;
            }
            rows_of(source, a_.y.first ? between_.data() : out);
            if (a_.y.first) resample_y({between_.data(), out_row_, a_.height}, a_.y, out_row_, a_.out_height, out);
        }
    }

 private:
    // The last rows of the memory are read from a copy, behind which there is room.
    void rows_of(const Rows& source, uint8_t* out) {
        int64_t inside = source.count;
        while (inside > 0 && source.first + (inside - 1) * source.stride + reach_ > end_) --inside;
        resample_x({source.first, source.stride, inside}, a_.x, a_.out_width, out);
        if (inside == source.count) return;
        padded_.assign((source.count - inside) * reach_, 0);
        for (int64_t y = inside; y < source.count; ++y)
            std::memcpy(&padded_[(y - inside) * reach_], source.first + y * source.stride, 3 * a_.width);
        resample_x({padded_.data(), reach_, source.count - inside}, a_.x, a_.out_width, out + inside * out_row_);
    }

    const dsvid_resize_args& a_;
    const int64_t out_row_;
    int64_t reach_ = 0;
    const uint8_t* end_ = nullptr;
    std::vector<uint8_t> between_, padded_;
};

}  // namespace

int dsvid_has_resize(void) { return __builtin_cpu_supports("avx2") != 0; }

int dsvid_resize_cpu(const dsvid_resize_args* args) {
    if (!dsvid_has_resize() || (!args->x.first && !args->y.first)) return DSVID_BAD_ARGUMENT;
    try {
        Resize(*args).run();
    } catch (const std::bad_alloc&) {
        return DSVID_NO_MEMORY;
    }
    return DSVID_OK;
}

#else

int dsvid_has_resize(void) { return 0; }
int dsvid_resize_cpu(const dsvid_resize_args*) { return DSVID_BAD_ARGUMENT; }

#endif
