// The fused tube-masking op on a GPU: one block per clip draws the masks, one block per token writes its row.
// Compiled with nvcc and read against the CPU kernel; it NEVER RAN ON A GPU so far, and nothing in it is tuned.
// tests/ops/test_cuda.py compares it with the reference wherever there is one.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "tube.h"
#include "tube_math.h"

#ifndef DSVID_SOURCE_HASH
#error "build with dsvid/ops/build.py, which passes DSVID_SOURCE_HASH"
#endif

namespace {

constexpr int kPlanThreads = 256;
constexpr int kGatherThreads = 128;
constexpr int kMaxPlanSites = 5120;  // 9 bytes each in 48 KiB of shared memory; dsvid/ops/native.py has the same number

struct PlanShape {
    int t, h, w, masked_sites, cell_drop;
    int64_t decoded_stride;
};

// How many of the sites before this one are in each list, for each of the four phases of the running cell.
struct Before {
    int visible, target[4], kept_visible[4];
};

// What is known of a site: bit 0 = masked, bits 1 and 2 = its place in the 2x2 cell.
__device__ bool is_masked(uint8_t site) { return site & 1; }
__device__ bool is_kept(const PlanShape& s, uint8_t site, int phase) {
    return s.cell_drop == 0 ? is_masked(site) : !cell_drops(phase, site >> 1, s.cell_drop);
}

__device__ Before count_before(const PlanShape& s, const uint8_t* known, int site) {
    Before n = {};
    for (int i = 0; i < site; ++i) {
        const uint8_t other = known[i];
        n.visible += !is_masked(other);
        for (int phase = 0; phase < 4; ++phase) {
            const bool kept = is_kept(s, other, phase);
            n.target[phase] += is_masked(other) && kept;
            n.kept_visible[phase] += !is_masked(other) && kept;
        }
    }
    return n;
}

__global__ void plan_kernel(PlanShape s, const int64_t* seeds, int32_t* visible, int32_t* decoded, int32_t* n_targets) {
    extern __shared__ int64_t keys[];
    const int sites = s.h * s.w, n_visible = sites - s.masked_sites;
    uint8_t* known = reinterpret_cast<uint8_t*>(keys + sites);
    __shared__ int targets_of_phase[4], kept_visible_of_phase[4];
    const int64_t seed = seeds[blockIdx.x];
    const uint64_t start = stream_start(seed, STREAM_TUBE_MASK);
    for (int site = threadIdx.x; site < sites; site += blockDim.x) keys[site] = site_key(start, site);
    __syncthreads();
    // A site is masked if fewer than masked_sites others come before it in the order (key, index).
    for (int site = threadIdx.x; site < sites; site += blockDim.x) {
        const int64_t key = keys[site];
        int rank = 0;
        for (int i = 0; i < sites; ++i) rank += keys[i] < key || (keys[i] == key && i < site);
        known[site] = static_cast<uint8_t>((rank < s.masked_sites) | place_in_cell(site / s.w, site % s.w) << 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const Before all = count_before(s, known, sites);
        for (int phase = 0; phase < 4; ++phase) {
            targets_of_phase[phase] = all.target[phase];
            kept_visible_of_phase[phase] = all.kept_visible[phase];
        }
    }
    __syncthreads();
    const int first = cell_start(seed);
    int total = 0;
    for (int slot = 0; slot < s.t; ++slot) total += targets_of_phase[(first + slot) & 3];
    if (threadIdx.x == 0) n_targets[blockIdx.x] = total;
    int32_t* my_visible = visible + static_cast<int64_t>(blockIdx.x) * s.t * n_visible;
    int32_t* my_decoded = decoded + blockIdx.x * s.decoded_stride;
    for (int site = threadIdx.x; site < sites; site += blockDim.x) {
        const Before before = count_before(s, known, site);
        int target_base = 0, kept_base = total;
        for (int slot = 0; slot < s.t; ++slot) {
            const int phase = (first + slot) & 3, token = slot * sites + site;
            const bool masked = is_masked(known[site]), kept = is_kept(s, known[site], phase);
            if (!masked) my_visible[slot * n_visible + before.visible] = token;
            if (kept && masked) my_decoded[target_base + before.target[phase]] = token;
            if (kept && !masked) my_decoded[kept_base + before.kept_visible[phase]] = token;
            target_base += targets_of_phase[phase];
            kept_base += kept_visible_of_phase[phase];
        }
    }
}

struct GatherShape {
    const uint8_t* clip;
    const int32_t* visible;
    const int32_t* targets;
    void* patches_out;
    void* targets_out;
    int64_t frame_bytes, line_bytes;
    int frames, h, w, tokens, tubelet, patch, n_visible, n_targets, patches_dtype, targets_dtype;
    bool norm_pix, in_words;  // in_words: rows are 4-byte aligned
    Scale scale;
};

// The type is a run-time value: the branch is the same for a whole launch, and one kernel instead of 18 compiles in a
// tenth of the time.
__device__ void put(float value, void* out, int64_t i, int dtype) {
    if (dtype == DSVID_FLOAT32) {
        static_cast<float*>(out)[i] = value;
    } else if (dtype == DSVID_FLOAT16) {
        static_cast<__half*>(out)[i] = __float2half_rn(value);
    } else {
        static_cast<uint16_t*>(out)[i] = isnan(value) ? 0x7fc0 : to_bfloat16(value);
    }
}

// Bytes of a token into shared memory in the order (u, p, p, channel).
template <class Unit>
__device__ void stage(const GatherShape& s, const uint8_t* corner, int values, uint8_t* bytes) {
    const int run = 3 * s.patch;
    for (int i = threadIdx.x * sizeof(Unit); i < values; i += blockDim.x * sizeof(Unit)) {
        const int row = i / run;
        const uint8_t* from = corner + (row / s.patch) * s.frame_bytes + (row % s.patch) * s.line_bytes + i % run;
        *reinterpret_cast<Unit*>(bytes + i) = *reinterpret_cast<const Unit*>(from);
    }
}

// The norm-pix scale of the staged token, written to shared memory by one thread per channel.
__device__ void scale_of_block(const uint8_t* bytes, int pixels, Scale* scale) {
    __shared__ int64_t warps[kGatherThreads / 32][6];
    int64_t part[6] = {};
    for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x)
        for (int c = 0; c < 3; ++c) {
            const int value = bytes[3 * pixel + c];
            part[c] += value;
            part[3 + c] += value * value;
        }
    for (int k = 0; k < 6; ++k) {
        for (int offset = 16; offset; offset >>= 1)
            part[k] += __shfl_down_sync(0xffffffffu, static_cast<long long>(part[k]), offset);
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][k] = part[k];
    }
    __syncthreads();
    if (threadIdx.x < 3) {
        const int c = threadIdx.x;
        int64_t sum = 0, squares = 0;
        for (int warp = 0; warp < kGatherThreads / 32; ++warp) {
            sum += warps[warp][c];
            squares += warps[warp][3 + c];
        }
        scale_of_sums(sum, squares, pixels, &scale->whole[c], &scale->frac[c], &scale->inv[c]);
    }
    __syncthreads();
}

// blockIdx.x: a visible token or, behind those, a target; blockIdx.y: the clip.
__global__ void gather_kernel(GatherShape s) {
    extern __shared__ uint32_t words[];
    __shared__ Scale scale;
    uint8_t* bytes = reinterpret_cast<uint8_t*>(words);
    const int pixels = s.tubelet * s.patch * s.patch, values = 3 * pixels;
    const bool is_patch = static_cast<int>(blockIdx.x) < s.n_visible;
    const int64_t clip = blockIdx.y;
    const int64_t row = is_patch ? clip * s.n_visible + blockIdx.x : clip * s.n_targets + (blockIdx.x - s.n_visible);
    const int token = is_patch ? s.visible[row] : s.targets[row];
    const int dtype = is_patch ? s.patches_dtype : s.targets_dtype;
    void* out = is_patch ? s.patches_out : s.targets_out;
    if (token < 0 || token >= s.tokens) {
        for (int i = threadIdx.x; i < values; i += blockDim.x) put(NAN, out, row * values + i, dtype);
        return;
    }
    const int slot = token / (s.h * s.w), y = token / s.w % s.h, x = token % s.w;
    const uint8_t* corner = s.clip + (clip * s.frames + static_cast<int64_t>(slot) * s.tubelet) * s.frame_bytes +
                            static_cast<int64_t>(y) * s.patch * s.line_bytes + 3 * x * s.patch;
    if (s.in_words)
        stage<uint32_t>(s, corner, values, bytes);
    else
        stage<uint8_t>(s, corner, values, bytes);
    const float raw = 1.0f / 255.0f;
    if (threadIdx.x == 0) scale = is_patch ? s.scale : Scale{{0, 0, 0}, {0, 0, 0}, {raw, raw, raw}};
    __syncthreads();
    if (!is_patch && s.norm_pix) scale_of_block(bytes, pixels, &scale);
    for (int i = threadIdx.x; i < values; i += blockDim.x) {
        const int c = is_patch ? i / pixels : i % 3;
        const uint8_t value = bytes[is_patch ? 3 * (i % pixels) + c : i];
        put(scaled(value, scale.whole[c], scale.frac[c], scale.inv[c]), out, row * values + i, dtype);
    }
}

int result_of(cudaError_t error) { return error == cudaSuccess ? DSVID_OK : DSVID_CUDA_ERROR + error; }

void* moved(void* out, int64_t values, int dtype) {
    return static_cast<char*>(out) + values * (dtype == DSVID_FLOAT32 ? 4 : 2);
}

int launch_gather(const GatherShape& s, int64_t batch, cudaStream_t stream) {
    const int values = 3 * s.tubelet * s.patch * s.patch;
    if (values > 40 * 1024) {
        const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
        const cudaError_t error = cudaFuncSetAttribute(gather_kernel, limit, values);
        if (error != cudaSuccess) return result_of(error);
    }
    constexpr int64_t kMaxGridY = 65535;
    for (int64_t done = 0; done < batch; done += kMaxGridY) {
        const int64_t count = batch - done < kMaxGridY ? batch - done : kMaxGridY;
        GatherShape part = s;
        part.clip += done * s.frames * s.frame_bytes;
        part.visible += done * s.n_visible;
        part.targets += done * s.n_targets;
        part.patches_out = moved(s.patches_out, done * s.n_visible * values, s.patches_dtype);
        part.targets_out = moved(s.targets_out, done * s.n_targets * values, s.targets_dtype);
        const dim3 grid(s.n_visible + s.n_targets, static_cast<unsigned>(count));
        gather_kernel<<<grid, kGatherThreads, values, stream>>>(part);
        const cudaError_t error = cudaGetLastError();
        if (error != cudaSuccess) return result_of(error);
    }
    return DSVID_OK;
}

}  // namespace

extern "C" {

const char* dsvid_source_hash(void) { return DSVID_SOURCE_HASH; }

const char* dsvid_cuda_error_text(int result) {
    return cudaGetErrorString(static_cast<cudaError_t>(result - DSVID_CUDA_ERROR));
}

int dsvid_plan_cuda(const dsvid_plan_args* a, void* stream) {
    const int64_t sites = a->h * a->w;
    if (sites > kMaxPlanSites || a->masked_sites < 0 || a->masked_sites >= sites) return DSVID_BAD_ARGUMENT;
    if (a->batch == 0) return DSVID_OK;
    const PlanShape shape = {static_cast<int>(a->t),         static_cast<int>(a->h),
                             static_cast<int>(a->w),         static_cast<int>(a->masked_sites),
                             static_cast<int>(a->cell_drop), a->decoded_stride};
    plan_kernel<<<static_cast<unsigned>(a->batch), kPlanThreads, sites * 9, static_cast<cudaStream_t>(stream)>>>(
        shape, a->seeds, a->visible, a->decoded, a->n_targets);
    return result_of(cudaGetLastError());
}

int dsvid_gather_cuda(const dsvid_gather_args* a, void* stream) {
    if (a->batch == 0 || a->n_visible + a->n_targets == 0) return DSVID_OK;
    GatherShape s = {};
    s.clip = a->clip;
    s.visible = a->visible;
    s.targets = a->targets;
    s.patches_out = a->patches_out;
    s.targets_out = a->targets_out;
    s.line_bytes = a->width * 3;
    s.frame_bytes = a->height * s.line_bytes;
    s.frames = static_cast<int>(a->frames);
    s.tubelet = static_cast<int>(a->tubelet);
    s.patch = static_cast<int>(a->patch);
    s.h = static_cast<int>(a->height / a->patch);
    s.w = static_cast<int>(a->width / a->patch);
    s.tokens = static_cast<int>(a->frames / a->tubelet) * s.h * s.w;
    s.n_visible = static_cast<int>(a->n_visible);
    s.n_targets = static_cast<int>(a->n_targets);
    s.norm_pix = a->norm_pix != 0;
    for (int c = 0; c < 3; ++c) {
        s.scale.whole[c] = a->whole[c];
        s.scale.frac[c] = a->frac[c];
        s.scale.inv[c] = a->inv[c];
    }
    s.patches_dtype = a->patches_dtype;
    s.targets_dtype = a->targets_dtype;
    s.in_words = 3 * a->patch % 4 == 0 && s.line_bytes % 4 == 0 && reinterpret_cast<uintptr_t>(a->clip) % 4 == 0;
    return launch_gather(s, a->batch, static_cast<cudaStream_t>(stream));
}

}  // extern "C"
