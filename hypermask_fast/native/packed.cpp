// Masks of one bit an entry, without unpacking them: their sum with factors, and their products
// with a vector. Bit l of byte b is entry 8 b + l; the bits after the last entry are 0.

#include <algorithm>
#include <cstdint>

#include "phases.h"

namespace {

constexpr int kPhases = 1;

// Mirrored by hypermask_fast.native.packed.PackedPass.
struct Work {
  int64_t blocks, entries, block_entries, rows;  // blocks of a multiple of 8 entries
  const uint8_t *const *bits;                    // (rows,) pointers to ceil(entries / 8) bytes
  const double *factors;                         // (rows,)
  const void *values;                            // (entries,)
  void *sum;                                     // (entries,)
  double *products;                              // (blocks, rows)
  int64_t next[kPhases], done[kPhases];
};

template <typename F>
void each_block(Work &work, F item) {
  phase(work, 0, work.blocks, [&](int64_t block) {
    const int64_t start = block * work.block_entries;
    item(block, start, std::min(work.block_entries, work.entries - start));
  });
}

template <typename T>
void weighted_sum(Work &work) {
  each_block(work, [&](int64_t, int64_t start, int64_t count) {
    T *out = static_cast<T *>(work.sum) + start;
    std::fill_n(out, count, T(0));
    for (int64_t row = 0; row < work.rows; ++row) {
      const uint8_t *bits = work.bits[row] + start / 8;
      const T factor = T(work.factors[row]);
      for (int64_t b = 0; b < count / 8; ++b) {
        const uint32_t byte = bits[b];
        for (int l = 0; l < 8; ++l) out[8 * b + l] += T((byte >> l) & 1) * factor;
      }
      for (int64_t i = count / 8 * 8; i < count; ++i)
        out[i] += T((bits[i / 8] >> (i % 8)) & 1) * factor;
    }
  });
}

template <typename T>
void dots(Work &work) {
  each_block(work, [&](int64_t block, int64_t start, int64_t count) {
    const T *values = static_cast<const T *>(work.values) + start;
    for (int64_t row = 0; row < work.rows; ++row) {
      const uint8_t *bits = work.bits[row] + start / 8;
      T sums[8] = {};
      for (int64_t b = 0; b < count / 8; ++b) {
        const uint32_t byte = bits[b];
        for (int l = 0; l < 8; ++l) sums[l] += ((byte >> l) & 1) ? values[8 * b + l] : T(0);
      }
      double sum = 0;
      for (int64_t i = count / 8 * 8; i < count; ++i)
        sum += ((bits[i / 8] >> (i % 8)) & 1) ? double(values[i]) : 0;
      for (T lane : sums) sum += double(lane);
      work.products[block * work.rows + row] = sum;
    }
  });
}

}  // namespace

extern "C" {
void packed_sum_float32(Work *work) { weighted_sum<float>(*work); }
void packed_sum_float64(Work *work) { weighted_sum<double>(*work); }
void packed_dots_float32(Work *work) { dots<float>(*work); }
void packed_dots_float64(Work *work) { dots<double>(*work); }
}
