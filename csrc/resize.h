// The C interface of the resampling of uint8 clips. Plain C types only; dsvid/ops/resample.py makes the tables.
#pragma once

#include <stdint.h>

#include "tube.h"

#ifdef __cplusplus
extern "C" {
#endif

// One axis: output i is round(sum_k weights[i * taps + k] * input[first[i] + k] / 2^precision). Null `first`: the axis
// keeps its size. `taps` is even; a weight whose input lies behind the last one is zero.
typedef struct {
    const int32_t* first;    // [out]
    const int16_t* weights;  // [out, taps]
    int64_t taps, precision;
} dsvid_axis;

// Rows first (x), then columns (y), rounded to bytes in between.
typedef struct {
    const uint8_t* source;  // [frames, height, width, 3]: pixels of a row are dense, rows and frames need not be
    uint8_t* out;           // [frames, out_height, out_width, 3], dense
    int64_t frames, height, width, out_height, out_width;
    int64_t frame_stride, row_stride;  // of the source, in bytes
    dsvid_axis x, y;
} dsvid_resize_args;

// 1 if this processor has the instructions (AVX2).
DSVID_API int dsvid_has_resize(void);
DSVID_API int dsvid_resize_cpu(const dsvid_resize_args* args);

#ifdef __cplusplus
}
#endif
