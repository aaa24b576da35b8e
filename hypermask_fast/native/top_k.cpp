// The largest scores of each tensor of a network by magnitude, or those of at least 0, and the
// weights that they keep; the gradients of the scores. A histogram of the leading bits finds the order statistic; nothing is
// sorted. No result depends on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "phases.h"

namespace {

constexpr int kPhases = 5;

// Mirrored by hypermask_fast.native.top_k.TopKPass.
struct Work {
  int64_t tensors, blocks, by_magnitude;
  const int64_t *tensor_start, *tensor_block;  // (tensors + 1,): first entry, first block
  const int64_t *block_tensor, *block_start;   // (blocks,), (blocks + 1,)
  const int64_t *dropped;                      // (tensors,) entries that are not kept
  const void *scores;                          // (N,)
  const void *const *weights;                  // (tensors,) pointers
  void *const *products;                       // (tensors,)
  uint8_t *kept;                               // (N,); may be null
  void *candidates;                            // (N,)
  int64_t *candidate_count;                    // (blocks,)
  uint32_t *histogram;                         // (blocks, kBins)
  int64_t *bounds;                             // (tensors, 2): bin, values in the bins below it
  double *thresholds;                          // (tensors,)
  int64_t *first_kept;                         // (tensors,): of the entries at the threshold
  const void *const *product_grads;            // (tensors,); an entry may be null
  void *score_grad;                            // (N,)
  int64_t next[kPhases], done[kPhases];
};

// Whether an entry is kept, where those at the threshold are, and where they are not.
template <bool Ties, typename T>
inline bool is_kept(T score, T threshold) {
  const T size = std::fabs(score);
  return Ties ? !(size < threshold) : !(size <= threshold);
}

template <bool Ties, typename T>
void multiply(const T *__restrict scores, const T *__restrict w, T *__restrict product,
              uint8_t *__restrict kept, T threshold, int64_t count) {
  if (product)
    for (int64_t i = 0; i < count; ++i)
      product[i] = is_kept<Ties>(scores[i], threshold) ? w[i] : T(0);
  if (kept)
    for (int64_t i = 0; i < count; ++i) kept[i] = is_kept<Ties>(scores[i], threshold);
}

// Keeps the scores of at least 0.
template <typename T>
void forward_by_sign(Work &work) {
  phase(work, 0, work.blocks, [&](int64_t block) {
    const int64_t tensor = work.block_tensor[block], start = work.block_start[block];
    const int64_t count = work.block_start[block + 1] - start, from = start - work.tensor_start[tensor];
    const T *__restrict scores = static_cast<const T *>(work.scores) + start;
    const T *__restrict w = static_cast<const T *>(work.weights[tensor]) + from;
    T *__restrict product = static_cast<T *>(work.products[tensor]) + from;
    for (int64_t i = 0; i < count; ++i) product[i] = scores[i] >= 0 ? w[i] : T(0);
  });
}

template <typename T>
void forward(Work &work) {
  if (!work.by_magnitude) {
    forward_by_sign<T>(work);
    return;
  }
  const T *scores = static_cast<const T *>(work.scores);
  T *candidates = static_cast<T *>(work.candidates);
  const auto selects = [&](int64_t tensor) {
    const int64_t count = work.tensor_start[tensor + 1] - work.tensor_start[tensor];
    return work.dropped[tensor] > 0 && work.dropped[tensor] < count;
  };

  phase(work, 0, work.blocks, [&](int64_t block) {
    if (!selects(work.block_tensor[block])) return;
    uint32_t *counts = work.histogram + block * kBins;
    std::memset(counts, 0, kBins * sizeof *counts);
    const int64_t start = work.block_start[block], end = work.block_start[block + 1];
    for (int64_t i = start; i < end; ++i) ++counts[bin(std::fabs(scores[i]))];
  });

  phase(work, 1, work.tensors, [&](int64_t tensor) {
    if (!selects(tensor)) return;
    uint32_t counts[kBins] = {};
    for (int64_t b = work.tensor_block[tensor]; b < work.tensor_block[tensor + 1]; ++b)
      for (int i = 0; i < kBins; ++i) counts[i] += work.histogram[b * kBins + i];
    int64_t below = 0;
    int chosen = 0;
    while (below + counts[chosen] <= work.dropped[tensor]) below += counts[chosen++];
    work.bounds[2 * tensor] = chosen, work.bounds[2 * tensor + 1] = below;
  });

  phase(work, 2, work.blocks, [&](int64_t block) {
    const int64_t tensor = work.block_tensor[block];
    if (!selects(tensor)) return;
    const int64_t start = work.block_start[block], end = work.block_start[block + 1];
    int64_t at = start;
    for (int64_t i = start; i < end; ++i) {
      const T size = std::fabs(scores[i]);
      candidates[at] = size;
      at += bin(size) == work.bounds[2 * tensor];
    }
    work.candidate_count[block] = at - start;
  });

  // Of the entries at the threshold those with the lowest indices are dropped.
  phase(work, 3, work.tensors, [&](int64_t tensor) {
    const int64_t first = work.tensor_start[tensor], last = work.tensor_start[tensor + 1];
    work.first_kept[tensor] = first;
    if (!selects(tensor)) {
      work.thresholds[tensor] = 0;
      if (work.dropped[tensor] > 0) work.first_kept[tensor] = last;
      return;
    }
    T *begin = candidates + first, *end = begin;
    for (int64_t b = work.tensor_block[tensor]; b < work.tensor_block[tensor + 1]; ++b) {
      std::memmove(end, candidates + work.block_start[b], work.candidate_count[b] * sizeof(T));
      end += work.candidate_count[b];
    }
    T *nth = begin + (work.dropped[tensor] - work.bounds[2 * tensor + 1]);
    std::nth_element(begin, nth, end, before<T>);
    const T value = *nth;
    const auto is_tie = [&](T size) { return !before(size, value) && !before(value, size); };
    work.thresholds[tensor] = double(value);
    int64_t ties = std::count_if(begin, nth, is_tie);
    for (int64_t i = first; ties > 0; ++i) {
      ties -= is_tie(std::fabs(scores[i]));
      work.first_kept[tensor] = i + 1;
    }
  });

  phase(work, 4, work.blocks, [&](int64_t block) {
    const int64_t tensor = work.block_tensor[block], start = work.block_start[block];
    const int64_t end = work.block_start[block + 1], from = work.tensor_start[tensor];
    const bool all = work.dropped[tensor] == 0;
    const bool none = !all && !selects(tensor);
    // Nothing is above infinity, and NaN is above it in no comparison but !(x <= y).
    const T threshold = T(work.thresholds[tensor]);
    const int64_t middle = std::min(std::max(work.first_kept[tensor], start), end);
    const T *w = static_cast<const T *>(work.weights[tensor]);
    T *product = static_cast<T *>(work.products[tensor]);
    const auto part = [&](int64_t a, int64_t b, auto f) {
      f(scores + a, w + (a - from), product ? product + (a - from) : nullptr,
        work.kept ? work.kept + a : nullptr, b - a);
    };
    if (all || none || threshold != threshold) {
      part(start, end, [&](const T *s, const T *v, T *p, uint8_t *k, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
          const bool is = all || (!none && s[i] != s[i] && start + i >= work.first_kept[tensor]);
          if (p) p[i] = is ? v[i] : T(0);
          if (k) k[i] = is;
        }
      });
      return;
    }
    part(start, middle, [&](const T *s, const T *v, T *p, uint8_t *k, int64_t count) {
      multiply<false>(s, v, p, k, threshold, count);
    });
    part(middle, end, [&](const T *s, const T *v, T *p, uint8_t *k, int64_t count) {
      multiply<true>(s, v, p, k, threshold, count);
    });
  });
}

template <bool ByMagnitude, typename T>
void gradient(const T *__restrict scores, const T *__restrict w, const T *__restrict grads,
              T *__restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T of_mask = grads[i] * w[i];
    out[i] = ByMagnitude ? of_mask * sign(scores[i]) : of_mask;
  }
}

template <typename T>
void backward(Work &work) {
  phase(work, 0, work.blocks, [&](int64_t block) {
    const int64_t tensor = work.block_tensor[block], start = work.block_start[block];
    const int64_t count = work.block_start[block + 1] - start, from = start - work.tensor_start[tensor];
    T *out = static_cast<T *>(work.score_grad) + start;
    const T *grads = static_cast<const T *>(work.product_grads[tensor]);
    if (!grads) {
      std::fill_n(out, count, T(0));
      return;
    }
    const T *scores = static_cast<const T *>(work.scores) + start;
    const T *w = static_cast<const T *>(work.weights[tensor]) + from;
    if (work.by_magnitude)
      gradient<true>(scores, w, grads + from, out, count);
    else
      gradient<false>(scores, w, grads + from, out, count);
  });
}

}  // namespace

extern "C" {
void top_k_forward_float32(Work *work) { forward<float>(*work); }
void top_k_forward_float64(Work *work) { forward<double>(*work); }
void top_k_backward_float32(Work *work) { backward<float>(*work); }
void top_k_backward_float64(Work *work) { backward<double>(*work); }
}
