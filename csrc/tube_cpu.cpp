// The fused tube-masking op on a CPU. One thread, no global state, no OpenMP: safe in forked loader workers, and a
// caller that wants several threads gives each its own clips.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "lanes.h"
#include "lanes_x86.h"
#include "tube.h"
#include "tube_math.h"

#ifndef DSVID_SOURCE_HASH
#error "build with dsvid/ops/build.py, which passes DSVID_SOURCE_HASH"
#endif

namespace {

struct Site {
    int64_t key;
    int32_t site;
    bool operator<(const Site& other) const { return key != other.key ? key < other.key : site < other.site; }
};

void plan_clip(const dsvid_plan_args& a, int64_t clip, std::vector<Site>& order, std::vector<char>& masked) {
    const int64_t sites = a.h * a.w, n_visible = sites - a.masked_sites;
    const uint64_t start = stream_start(a.seeds[clip], STREAM_TUBE_MASK);
    for (int64_t site = 0; site < sites; ++site) order[site] = {site_key(start, site), static_cast<int32_t>(site)};
    std::nth_element(order.begin(), order.begin() + a.masked_sites, order.end());
    std::fill(masked.begin(), masked.end(), 0);
    for (int64_t i = 0; i < a.masked_sites; ++i) masked[order[i].site] = 1;

    int32_t* visible = a.visible + clip * a.t * n_visible;
    int32_t* decoded = a.decoded + clip * a.decoded_stride;
    int32_t* target = decoded;
    const int first = cell_start(a.seeds[clip]);
    const auto kept = [&](int64_t slot, int64_t site) {
        if (a.cell_drop == 0) return masked[site] != 0;
        return !cell_drops(first + slot, place_in_cell(site / a.w, site % a.w), a.cell_drop);
    };
    for (int64_t slot = 0; slot < a.t; ++slot)
        for (int64_t site = 0; site < sites; ++site) {
            const int32_t token = static_cast<int32_t>(slot * sites + site);
            if (!masked[site]) *visible++ = token;
            if (masked[site] && kept(slot, site)) *target++ = token;
        }
    a.n_targets[clip] = static_cast<int32_t>(target - decoded);
    if (a.cell_drop == 0) return;
    for (int64_t slot = 0; slot < a.t; ++slot)
        for (int64_t site = 0; site < sites; ++site)
            if (!masked[site] && kept(slot, site)) *target++ = static_cast<int32_t>(slot * sites + site);
}

const Lanes* find_lanes(int choice) {
#ifdef DSVID_X86_LANES
    const bool any = choice == DSVID_LANES_AUTO;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    // Every processor with AVX2 has F16C, and old compilers do not know that name in __builtin_cpu_supports.
    const bool avx2 = __builtin_cpu_supports("avx2");
#ifdef DSVID_X86_BFLOAT16
    const bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (bfloat16 && (any || choice == DSVID_LANES_AVX512_BF16)) return &kAvx512Bfloat16Lanes;
#endif
    if (avx512 && (any || choice == DSVID_LANES_AVX512)) return &kAvx512Lanes;
    if (avx2 && (any || choice == DSVID_LANES_AVX2)) return &kAvx2Lanes;
#endif
    if (choice == DSVID_LANES_AUTO || choice == DSVID_LANES_PORTABLE) return &kPortableLanes;
    return nullptr;
}

int64_t value_bytes(int dtype) { return dtype == DSVID_FLOAT32 ? 4 : 2; }

// Outputs of this size have left the caches before anyone reads them: bringing their lines in only to overwrite them
// (as an ordinary store does) doubles the time of the op.
constexpr int64_t kStreamedBytes = 4 << 20;

bool can_stream(const void* out, int64_t run_bytes) {
    return run_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

class Gather {
 public:
    Gather(const dsvid_gather_args& args, const Lanes& lanes)
        : a_(args),
          lanes_(lanes),
          t_(args.frames / args.tubelet),
          h_(args.height / args.patch),
          w_(args.width / args.patch),
          pixels_(args.tubelet * args.patch * args.patch),
          values_(3 * pixels_),
          padded_((values_ + kGroup - 1) / kGroup * kGroup),
          line_(args.width * 3),
          run_(args.patch * 3),
          frame_step_((args.height - args.patch) * line_) {
        const int64_t patch_bytes = values_ * value_bytes(a_.patches_dtype);
        const int64_t target_bytes = values_ * value_bytes(a_.targets_dtype);
        const int64_t written = a_.batch * (a_.n_visible * patch_bytes + a_.n_targets * target_bytes);
        patches_streamed_ = written >= kStreamedBytes && can_stream(a_.patches_out, patch_bytes / 3);
        targets_streamed_ = written >= kStreamedBytes && can_stream(a_.targets_out, target_bytes);
    }

    bool allocate() {
        staged_.reset(new (std::nothrow) uint8_t[padded_ + kSlack]());
        planes_.reset(new (std::nothrow) uint8_t[values_ + kSlack]());
        corners_.reset(new (std::nothrow) int64_t[tokens()]);
        if (!staged_ || !planes_ || !corners_) return false;
        int64_t* corner = corners_.get();
        for (int64_t slot = 0; slot < t_; ++slot)
            for (int64_t y = 0; y < h_; ++y)
                for (int64_t x = 0; x < w_; ++x)
                    *corner++ = (slot * a_.tubelet * a_.height + y * a_.patch) * line_ + x * run_;
        return true;
    }

    int64_t tokens() const { return t_ * h_ * w_; }

    void run() {
        for (int64_t clip = 0; clip < a_.batch; ++clip) run_clip(clip);
#ifdef DSVID_X86_LANES
        // Streaming stores are weakly ordered: another thread may be handed the buffer next.
        if (patches_streamed_ || targets_streamed_) _mm_sfence();
#endif
    }

 private:
    // Both lists ascend, so that walking them together reads the clip once from front to back.
    void run_clip(int64_t clip) {
        const int32_t* visible = a_.visible + clip * a_.n_visible;
        const int32_t* targets = a_.targets + clip * a_.n_targets;
        int64_t v = 0, l = 0;
        asked_ = 0;
        while (v < a_.n_visible || l < a_.n_targets) {
            if (l == a_.n_targets || (v < a_.n_visible && visible[v] < targets[l])) {
                stage(clip, visible[v]);
                write_patch(clip * a_.n_visible + v++);
            } else {
                stage(clip, targets[l]);
                write_target(clip * a_.n_targets + l++);
            }
        }
    }

    void stage(int64_t clip, int64_t token) {
        if (dense_) prefetch(clip, token);
        const uint8_t* from = corner_of(clip, token);
        uint8_t* to = staged_.get();
        for (int64_t frame = 0; frame < a_.tubelet; ++frame, from += frame_step_)
            // A constant size turns the copy into a few moves instead of a call.
            if (run_ == 48)
                for (int64_t row = 0; row < a_.patch; ++row, from += line_, to += 48) std::memcpy(to, from, 48);
            else
                for (int64_t row = 0; row < a_.patch; ++row, from += line_, to += run_) std::memcpy(to, from, run_);
    }

    // Asks for the bytes one row of tokens ahead, in memory order: the pixel rows of a token lie a picture row apart,
    // too many streams for the hardware to follow (without this the op takes half as long again). `asked_` is the first
    // token whose share has not been asked for.
    void prefetch(int64_t clip, int64_t token) {
        const int64_t end = std::min(token + w_ + 1, tokens());
        for (asked_ = std::max(asked_, token + 1); asked_ < end; ++asked_) {
            const int64_t x = asked_ % w_;
            const uint8_t* share = corner_of(clip, asked_ - x) + x * a_.patch * run_;
            for (int64_t frame = 0; frame < a_.tubelet; ++frame, share += a_.height * line_)
                for (int64_t at = 0; at < a_.patch * run_; at += 64) __builtin_prefetch(share + at);
        }
    }

    const uint8_t* corner_of(int64_t clip, int64_t token) const {
        return a_.clip + clip * a_.frames * a_.height * line_ + corners_[token];
    }

    void write_patch(int64_t row) {
        lanes_.split(staged_.get(), pixels_, planes_.get());
        const int64_t size = value_bytes(a_.patches_dtype);
        char* out = static_cast<char*>(a_.patches_out) + row * values_ * size;
        for (int c = 0; c < 3; ++c) {
            const float whole = a_.whole[c], frac = a_.frac[c], inv = a_.inv[c];
            const Scale scale = {{whole, whole, whole}, {frac, frac, frac}, {inv, inv, inv}};
            lanes_.write[a_.patches_dtype](planes_.get() + c * pixels_, pixels_, scale, out + c * pixels_ * size,
                                           patches_streamed_);
        }
    }

    void write_target(int64_t row) {
        const float raw = 1.0f / 255.0f;
        Scale scale = {{0, 0, 0}, {0, 0, 0}, {raw, raw, raw}};
        if (a_.norm_pix) {
            uint64_t sum[3], squares[3];
            lanes_.sums(staged_.get(), padded_, sum, squares);
            for (int c = 0; c < 3; ++c)
                scale_of_sums(sum[c], squares[c], pixels_, &scale.whole[c], &scale.frac[c], &scale.inv[c]);
        }
        char* out = static_cast<char*>(a_.targets_out) + row * values_ * value_bytes(a_.targets_dtype);
        lanes_.write[a_.targets_dtype](staged_.get(), values_, scale, out, targets_streamed_);
    }

    const dsvid_gather_args& a_;
    const Lanes& lanes_;
    const int64_t t_, h_, w_, pixels_, values_, padded_;
    const int64_t line_, run_, frame_step_;  // bytes of a picture row, of a token's row, to a token's next frame
    const bool dense_ = 2 * (a_.n_visible + a_.n_targets) > tokens();
    int64_t asked_ = 0;
    bool patches_streamed_, targets_streamed_;
    std::unique_ptr<uint8_t[]> staged_, planes_;
    std::unique_ptr<int64_t[]> corners_;  // [N] where a token begins in its clip; cheaper than dividing its index
};

bool find_bad_index(const int32_t* indices, int64_t count, int64_t tokens, int64_t* bad) {
    for (int64_t i = 0; i < count; ++i)
        if (indices[i] < 0 || indices[i] >= tokens) {
            *bad = indices[i];
            return true;
        }
    return false;
}

}  // namespace

extern "C" {

const char* dsvid_source_hash(void) { return DSVID_SOURCE_HASH; }

int dsvid_has_lanes(int lanes) { return find_lanes(lanes) != nullptr; }

int dsvid_plan_cpu(const dsvid_plan_args* args) {
    const int64_t sites = args->h * args->w;
    if (args->masked_sites < 0 || args->masked_sites >= sites) return DSVID_BAD_ARGUMENT;
    try {
        std::vector<Site> order(sites);
        std::vector<char> masked(sites);
        for (int64_t clip = 0; clip < args->batch; ++clip) plan_clip(*args, clip, order, masked);
    } catch (const std::bad_alloc&) {
        return DSVID_NO_MEMORY;
    }
    return DSVID_OK;
}

int dsvid_gather_cpu(const dsvid_gather_args* args, int64_t* bad_index) {
    const Lanes* lanes = find_lanes(args->lanes);
    if (!lanes || 3 * args->tubelet * args->patch * args->patch > kMaxTokenBytes) return DSVID_BAD_ARGUMENT;
    Gather gather(*args, *lanes);
    if (find_bad_index(args->visible, args->batch * args->n_visible, gather.tokens(), bad_index) ||
        find_bad_index(args->targets, args->batch * args->n_targets, gather.tokens(), bad_index))
        return DSVID_BAD_INDEX;
    if (!gather.allocate()) return DSVID_NO_MEMORY;
    gather.run();
    return DSVID_OK;
}

}  // extern "C"
