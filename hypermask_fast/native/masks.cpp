// Semi-binary masks of all tensors of a network: |tanh z|, each tensor's percentile by a histogram
// of the values' leading bits, the masked weights, the L1 drift, and the gradients of it all.
//
// A pass goes through phases, each a list of items that any number of threads claim. Sums have one
// order, so no result depends on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "phases.h"

namespace {

constexpr int kPhases = 5;
constexpr int kLanes = 8;  // partial sums of the drift

// Mirrored by hypermask_fast.native.masks.MaskPass.
struct Work {
  int64_t tensors, blocks, masked_drift;
  const int64_t *tensor_start, *tensor_block;        // (tensors + 1,): first entry, first block
  const int64_t *block_tensor, *block_start;         // (blocks,), (blocks + 1,)
  const double *place;                               // (tensors,); negative: no threshold
  const void *logits, *previous;                     // (N,); previous may be null
  void *masks;                                       // (N,)
  const void *const *weights;                        // (tensors,) pointers
  void *const *products;                             // (tensors,); an entry may be null
  void *candidates;                                  // (N,)
  int64_t *candidate_count;                          // (blocks,)
  uint32_t *histogram;                               // (blocks, kBins)
  int64_t *bounds;                                   // (tensors, 3): first and last bin, values below
  double *thresholds, *drift;                        // (tensors,), (blocks,)
  const void *const *product_grads;                  // (tensors,); an entry may be null
  void *const *weight_grads;                         // (tensors,); an entry may be null
  void *logit_grad;                                  // (N,)
  double drift_grad;
  int64_t next[kPhases], done[kPhases];
};

inline double abs_tanh(double x) { return std::tanh(std::fabs(x)); }

// Within 2 units in the last place. Minimax polynomials, fitted for this purpose: of
// (tanh(x) / x - 1) / x^2 up to 0.625, and of (exp(r) - 1 - r) / r^2 for the rest.
inline float abs_tanh(float value) {
  const float x = std::fabs(value), s = x * x;
  float p = 2.147524003e-03f;
  p = p * s - 8.182659874e-03f;
  p = p * s + 2.170296166e-02f;
  p = p * s - 5.394720338e-02f;
  p = p * s + 1.333320976e-01f;
  p = p * s - 3.333333091e-01f;
  const float small = x + x * s * p;
  const float y = 2 * (x > 10.0f ? 10.0f : x);
  const float k = std::rint(y * 1.442695041f);
  const float r = (y - k * 0.693145752f) - k * 1.42860677e-6f;
  float e = 1.395047755e-03f;
  e = e * r + 8.368882451e-03f;
  e = e * r + 4.166620601e-02f;
  e = e * r + 1.666651890e-01f;
  e = e * r + 5.000000095e-01f;
  e = 1 + (r + r * r * e);
  const int32_t bits = (int32_t(k == k ? k : 0.0f) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float large = 1 - 2 / (e * power + 1);
  return x < 0.625f ? small : large;
}

template <typename T>
void forward(Work &work) {
  const T *logits = static_cast<const T *>(work.logits);
  const T *previous = static_cast<const T *>(work.previous);
  T *masks = static_cast<T *>(work.masks), *candidates = static_cast<T *>(work.candidates);

  phase(work, 0, work.blocks, [&](int64_t block) {
    const int64_t start = work.block_start[block], end = work.block_start[block + 1];
    for (int64_t i = start; i < end; ++i) masks[i] = abs_tanh(logits[i]);
    if (work.place[work.block_tensor[block]] < 0) return;
    uint32_t *counts = work.histogram + block * kBins;
    std::memset(counts, 0, kBins * sizeof *counts);
    for (int64_t i = start; i < end; ++i) ++counts[bin(masks[i])];
  });

  phase(work, 1, work.tensors, [&](int64_t tensor) {
    if (work.place[tensor] < 0) return;
    const int64_t low = int64_t(std::floor(work.place[tensor]));
    const int64_t high = int64_t(std::ceil(work.place[tensor]));
    uint32_t counts[kBins] = {};
    for (int64_t b = work.tensor_block[tensor]; b < work.tensor_block[tensor + 1]; ++b)
      for (int i = 0; i < kBins; ++i) counts[i] += work.histogram[b * kBins + i];
    int64_t below = 0;
    int first = 0;
    while (below + counts[first] <= low) below += counts[first++];
    int last = first;
    for (int64_t up_to = below + counts[first]; up_to <= high;) up_to += counts[++last];
    int64_t *bounds = work.bounds + 3 * tensor;
    bounds[0] = first, bounds[1] = last, bounds[2] = below;
  });

  phase(work, 2, work.blocks, [&](int64_t block) {
    const int64_t tensor = work.block_tensor[block];
    if (work.place[tensor] < 0) return;
    const int first = int(work.bounds[3 * tensor]), last = int(work.bounds[3 * tensor + 1]);
    const int64_t start = work.block_start[block], end = work.block_start[block + 1];
    int64_t at = start;
    for (int64_t i = start; i < end; ++i) {
      const int b = bin(masks[i]);
      candidates[at] = masks[i];
      at += b >= first && b <= last;
    }
    work.candidate_count[block] = at - start;
  });

  phase(work, 3, work.tensors, [&](int64_t tensor) {
    const double place = work.place[tensor];
    if (place < 0) return;
    T *begin = candidates + work.tensor_start[tensor], *end = begin;
    for (int64_t b = work.tensor_block[tensor]; b < work.tensor_block[tensor + 1]; ++b) {
      std::memmove(end, candidates + work.block_start[b], work.candidate_count[b] * sizeof(T));
      end += work.candidate_count[b];
    }
    const double whole = std::floor(place), part = place - whole;
    T *nth = begin + (int64_t(whole) - work.bounds[3 * tensor + 2]);
    std::nth_element(begin, nth, end, before<T>);
    const double low = double(*nth);
    const double high = part > 0 ? double(*std::min_element(nth + 1, end, before<T>)) : low;
    // As torch.lerp: the result stays between the two.
    const double value = part < 0.5 ? low + part * (high - low) : high - (high - low) * (1 - part);
    work.thresholds[tensor] = double(T(value));
  });

  phase(work, 4, work.blocks, [&](int64_t block) {
    const int64_t tensor = work.block_tensor[block], start = work.block_start[block];
    const int64_t count = work.block_start[block + 1] - start, from = start - work.tensor_start[tensor];
    const T *w = static_cast<const T *>(work.weights[tensor]) + from;
    T *m = masks + start;
    if (work.place[tensor] >= 0) {
      const T threshold = T(work.thresholds[tensor]);
      for (int64_t i = 0; i < count; ++i) m[i] = m[i] < threshold ? T(0) : m[i];
    }
    if (T *product = static_cast<T *>(work.products[tensor])) {
      product += from;
      for (int64_t i = 0; i < count; ++i) product[i] = w[i] * m[i];
    }
    if (!previous) return;
    const T *old = previous + start;
    const auto distance = [&](int64_t i) {
      const T away = std::fabs(w[i] - old[i]);
      return double(work.masked_drift ? away * m[i] : away);
    };
    double sums[kLanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (int l = 0; l < kLanes; ++l) sums[l] += distance(i + l);
    for (; i < count; ++i) sum += distance(i);
    for (double lane : sums) sum += lane;
    work.drift[block] = sum;
  });
}

// d|tanh z| / dz. A removed entry has the mask 0, and so has a logit of 0, whose slope is 0 too.
template <typename T>
inline T slope(T z, T m) {
  return m == 0 ? T(0) : sign(z) * (1 - m * m);
}

template <typename T>
void gradients(const T *__restrict z, const T *__restrict m, const T *__restrict w,
               const T *__restrict grads, T *__restrict of_weight, T *__restrict of_logits,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    of_weight[i] = grads[i] * m[i];
    of_logits[i] = grads[i] * w[i] * slope(z[i], m[i]);
  }
}

template <bool Masked, typename T>
void add_drift(const T *__restrict z, const T *__restrict m, const T *__restrict w,
               const T *__restrict old, T factor, T *__restrict of_weight,
               T *__restrict of_logits, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T away = w[i] - old[i], along = factor * sign(away);
    of_weight[i] += Masked ? along * m[i] : along;
    if (Masked) of_logits[i] += factor * std::fabs(away) * slope(z[i], m[i]);
  }
}

template <typename T>
void backward(Work &work) {
  const T *logits = static_cast<const T *>(work.logits), *masks = static_cast<const T *>(work.masks);
  const T *previous = static_cast<const T *>(work.previous);
  const T drift_grad = T(work.drift_grad);
  phase(work, 0, work.blocks, [&](int64_t block) {
    const int64_t tensor = work.block_tensor[block], start = work.block_start[block];
    const int64_t count = work.block_start[block + 1] - start, from = start - work.tensor_start[tensor];
    const T *w = static_cast<const T *>(work.weights[tensor]) + from;
    const T *z = logits + start, *m = masks + start;
    const T *grads = static_cast<const T *>(work.product_grads[tensor]);
    T *of_weight = static_cast<T *>(work.weight_grads[tensor]) + from;
    T *of_logits = static_cast<T *>(work.logit_grad) + start;
    if (grads)
      gradients(z, m, w, grads + from, of_weight, of_logits, count);
    else
      std::fill_n(of_weight, count, T(0)), std::fill_n(of_logits, count, T(0));
    if (!previous) return;
    const T *old = previous + start;
    if (work.masked_drift)
      add_drift<true>(z, m, w, old, drift_grad, of_weight, of_logits, count);
    else
      add_drift<false>(z, m, w, old, drift_grad, of_weight, of_logits, count);
  });
}

}  // namespace

extern "C" {
void mask_forward_float32(Work *work) { forward<float>(*work); }
void mask_forward_float64(Work *work) { forward<double>(*work); }
void mask_backward_float32(Work *work) { backward<float>(*work); }
void mask_backward_float64(Work *work) { backward<double>(*work); }
}
