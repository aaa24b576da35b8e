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

constexpr int kLanes = 4;  // bytes whose products are summed apart
constexpr int kRows = 4;   // masks that are added at once

// The bits of every byte as numbers.
template <typename T>
struct Table {
  alignas(64) T bits[256][8];
  constexpr Table() : bits() {
    for (int byte = 0; byte < 256; ++byte)
      for (int l = 0; l < 8; ++l) bits[byte][l] = T((byte >> l) & 1);
  }
};
template <typename T>
constexpr Table<T> kTable{};

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
    T *__restrict out = static_cast<T *>(work.sum) + start;
    std::fill_n(out, count, T(0));
    for (int64_t row = 0; row < work.rows; row += kRows) {
      // Rows after the last one count 0 times.
      const uint8_t *bits[kRows];
      T factors[kRows];
      for (int r = 0; r < kRows; ++r) {
        const bool is = row + r < work.rows;
        bits[r] = work.bits[is ? row + r : row] + start / 8;
        factors[r] = is ? T(work.factors[row + r]) : T(0);
      }
      for (int64_t b = 0; b < count / 8; ++b) {
        T sums[8];
        for (int l = 0; l < 8; ++l) sums[l] = out[8 * b + l];
        for (int r = 0; r < kRows; ++r) {
          const T *mask = kTable<T>.bits[bits[r][b]];
          for (int l = 0; l < 8; ++l) sums[l] += mask[l] * factors[r];
        }
        for (int l = 0; l < 8; ++l) out[8 * b + l] = sums[l];
      }
      for (int64_t i = count / 8 * 8; i < count; ++i)
        for (int r = 0; r < kRows; ++r)
          out[i] += T((bits[r][i / 8] >> (i % 8)) & 1) * factors[r];
    }
  });
}

template <typename T>
void dots(Work &work) {
  each_block(work, [&](int64_t block, int64_t start, int64_t count) {
    const T *values = static_cast<const T *>(work.values) + start;
    for (int64_t row = 0; row < work.rows; ++row) {
      const uint8_t *bits = work.bits[row] + start / 8;
      T sums[kLanes][8] = {};
      int64_t b = 0;
      for (; b + kLanes <= count / 8; b += kLanes)
        for (int k = 0; k < kLanes; ++k) {
          const T *mask = kTable<T>.bits[bits[b + k]];
          for (int l = 0; l < 8; ++l) sums[k][l] += mask[l] * values[8 * (b + k) + l];
        }
      double sum = 0;
      for (int64_t i = 8 * b; i < count; ++i)
        sum += double(T((bits[i / 8] >> (i % 8)) & 1) * values[i]);
      for (const auto &lane : sums)
        for (T part : lane) sum += double(part);
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
