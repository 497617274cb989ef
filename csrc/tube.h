// The C interface of the fused tube-masking op. Plain C types only: no torch, no Python (dsvid/ops/ knows those).
#pragma once

#include <stdint.h>

#define DSVID_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Results of every function below; a CUDA error code e is returned as DSVID_CUDA_ERROR + e.
enum { DSVID_OK = 0, DSVID_NO_MEMORY = 1, DSVID_BAD_INDEX = 2, DSVID_BAD_ARGUMENT = 3, DSVID_CUDA_ERROR = 1000 };

enum { DSVID_FLOAT32 = 0, DSVID_BFLOAT16 = 1, DSVID_FLOAT16 = 2 };

// Instruction sets of the CPU kernel. AUTO takes the best one that the processor has.
enum {
    DSVID_LANES_AUTO = 0,
    DSVID_LANES_PORTABLE = 1,
    DSVID_LANES_AVX2 = 2,
    DSVID_LANES_AVX512 = 3,
    DSVID_LANES_AVX512_BF16 = 4
};

// B clips of t x h x w tokens. Lists are written as dsvid/ops/reference.py defines them.
typedef struct {
    const int64_t* seeds;  // [B]
    int32_t* visible;      // [B, t * (h*w - masked_sites)]
    int32_t* decoded;      // [B, decoded_stride]
    int32_t* n_targets;    // [B]
    int64_t batch, t, h, w, masked_sites, cell_drop, decoded_stride;
} dsvid_plan_args;

typedef struct {
    const uint8_t* clip;     // [B, T, H, W, 3]
    const int32_t* visible;  // [B, V]
    const int32_t* targets;  // [B, L]
    void* patches_out;       // [B, V, P]: values in the order (channel, u, p, p)
    void* targets_out;       // [B, L, P]: values in the order (u, p, p, channel)
    int64_t batch, n_visible, n_targets, frames, height, width, tubelet, patch;
    float whole[3], frac[3], inv[3];  // patches: ((x - whole) - frac) * inv for the byte x of a channel
    int32_t norm_pix, patches_dtype, targets_dtype, lanes;
} dsvid_gather_args;

// The hash of csrc/ that the file was compiled from, so that a stale build is noticed.
DSVID_API const char* dsvid_source_hash(void);

DSVID_API int dsvid_plan_cpu(const dsvid_plan_args* args);
// Checks every index before it writes; on DSVID_BAD_INDEX *bad_index is the first one outside [0, N).
DSVID_API int dsvid_gather_cpu(const dsvid_gather_args* args, int64_t* bad_index);
// 1 if this processor can run the instruction set.
DSVID_API int dsvid_has_lanes(int lanes);

// `stream` is a cudaStream_t. The launches are asynchronous; the caller has set the device.
DSVID_API int dsvid_plan_cuda(const dsvid_plan_args* args, void* stream);
// An index outside [0, N) gives a row of NaN: a kernel cannot raise, and reading outside the clip is worse.
DSVID_API int dsvid_gather_cuda(const dsvid_gather_args* args, void* stream);
DSVID_API const char* dsvid_cuda_error_text(int result);

#ifdef __cplusplus
}
#endif
