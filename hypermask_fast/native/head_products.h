// The products of a tile of a head with embeddings, for head.cpp: logits, and both gradients.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "head_vectors.h"

namespace {

constexpr int kMany = 16;  // embeddings from which on A is transposed

// Logits of four rows and up to W embeddings, packed (H, W): z[j * kTile + r].
template <typename T, int W>
void dots(const T *a, int64_t stride, const T *packed, int64_t width, int count, T *z) {
  using V = typename VectorOf<T, W>::type;
  V sum[kGroup][kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= width; i += kChains)
    UNROLL for (int c = 0; c < kChains; ++c) {
      const V h = load<V>(packed + (i + c) * W);
      UNROLL for (int r = 0; r < kGroup; ++r) sum[r][c] += a[r * stride + i + c] * h;
    }
  UNROLL for (int c = 0; c < kChains - 1; ++c)
    if (i + c < width) {
      const V h = load<V>(packed + (i + c) * W);
      UNROLL for (int r = 0; r < kGroup; ++r) sum[r][c] += a[r * stride + i + c] * h;
    }
  T out[kGroup][W];
  UNROLL for (int r = 0; r < kGroup; ++r)
    store(out[r], (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]));
  for (int j = 0; j < count; ++j)
    UNROLL for (int r = 0; r < kGroup; ++r) z[j * kTile + r] = out[r][j];
}

// The same sums for one embedding: a vector holds the four chains.
template <typename T>
void single_dots(const T *a, int64_t stride, const T *h, int64_t width, T *z) {
  using V = typename VectorOf<T, kChains>::type;
  V sum[kGroup] = {};
  int64_t i = 0;
  for (; i + kChains <= width; i += kChains)
    UNROLL for (int r = 0; r < kGroup; ++r) sum[r] += load<V>(a + r * stride + i) * load<V>(h + i);
  UNROLL for (int r = 0; r < kGroup; ++r) {
    UNROLL for (int c = 0; c < kChains - 1; ++c)
      if (i + c < width) sum[r][c] += a[r * stride + i + c] * h[i + c];
    z[r] = (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]);
  }
}

// The embeddings in groups of W, W / 2, ... columns, each packed (H, W); the last may be half full.
template <typename T>
struct Packed {
  int64_t width;
  int count;
  T *data;

  static constexpr int kWide = kWidth<T> > 4 ? kWidth<T> : 4;

  static int columns(int left) {
    if (left == 1) return 1;
    int w = 4;
    while (w < left && w < kWide) w *= 2;
    return w;
  }

  Packed(const T *hidden, int64_t width, int count, int first) : width(width), count(count - first) {
    data = allocate<T>(width * (this->count + kWide));
    T *out = data;
    for (int j = first; j < count; j += columns(count - j)) {
      const int w = columns(count - j), used = std::min(w, count - j);
      for (int64_t i = 0; i < width; ++i)
        for (int l = 0; l < used; ++l) out[i * w + l] = hidden[(j + l) * width + i];
      out += width * w;
    }
  }
  ~Packed() { std::free(data); }

  // z[j * kTile + r] for kTile rows at most; `a` has readable rows up to a multiple of kGroup.
  void logits(const T *a, int64_t stride, int rows, T *z, Ahead &ahead) const {
    const int lines = int(kGroup * width * sizeof(T) / 64) + 1;
    for (int r = 0; r < rows; r += kGroup) {
      ahead.fetch(lines);
      const T *h = data, *row = a + r * stride;
      for (int j = 0; j < count;) {
        const int w = columns(count - j), used = std::min(w, count - j);
        T *out = z + j * kTile + r;
        if (w == 1)
          single_dots(row, stride, h, width, out);
        else if (w == 4)
          dots<T, 4>(row, stride, h, width, used, out);
        else if (w == 8 && kWide >= 8)
          dots<T, kWide >= 8 ? 8 : 4>(row, stride, h, width, used, out);
        else
          dots<T, kWide>(row, stride, h, width, used, out);
        h += width * w;
        j += used;
      }
    }
  }
};

// Logits of a tile and J embeddings, A being transposed (H, kTile): one chain each, over columns.
template <typename T, int J>
void column_dots(const T *at, const T *h, int64_t stride, int64_t width, T *z) {
  constexpr int W = kWidth<T>, C = kTile / W;
  using V = typename VectorOf<T, W>::type;
  V sum[J][C] = {};
  for (int64_t i = 0; i < width; ++i) {
    V x[C];
    UNROLL for (int c = 0; c < C; ++c) {
      x[c] = load<V>(at + i * kTile + c * W);
      KEEP(x[c]);
    }
    UNROLL for (int j = 0; j < J; ++j)
      UNROLL for (int c = 0; c < C; ++c) sum[j][c] += h[j * stride + i] * x[c];
  }
  UNROLL for (int j = 0; j < J; ++j)
    UNROLL for (int c = 0; c < C; ++c) store(z + j * kTile + c * W, sum[j][c]);
}

// The logits of many embeddings, for which it is worth to transpose A first.
template <typename T>
void many_logits(const T *a, const T *h, int64_t stride, int64_t width, int count, T *at, T *z) {
  constexpr int vectors = kTile / kWidth<T>, most = kVectorBytes == 64 ? 16 : 8;
  constexpr int J = most > vectors ? most / vectors : 1;
  for (int r = 0; r < kTile; ++r)
    for (int64_t i = 0; i < width; ++i) at[i * kTile + r] = a[r * stride + i];
  int j = 0;
  for (; j + J <= count; j += J)
    column_dots<T, J>(at, h + j * stride, stride, width, z + j * kTile);
  for (; j < count; ++j) column_dots<T, 1>(at, h + j * stride, stride, width, z + j * kTile);
}

// out (J, H) += dz (J, rows) a (rows, H), for J embeddings and C vectors of columns.
template <typename T, int J, int C>
void reduce_rows(const T *a, int64_t stride, const T *dz, int rows, T *out) {
  constexpr int W = kWidth<T>;
  using V = typename VectorOf<T, W>::type;
  V sum[J][C] = {};
  for (int r = 0; r < rows; ++r) {
    V x[C];
    UNROLL for (int c = 0; c < C; ++c) {
      x[c] = load<V>(a + r * stride + c * W);
      KEEP(x[c]);
    }
    UNROLL for (int j = 0; j < J; ++j)
      UNROLL for (int c = 0; c < C; ++c) sum[j][c] += dz[j * kTile + r] * x[c];
  }
  UNROLL for (int j = 0; j < J; ++j)
    UNROLL for (int c = 0; c < C; ++c)
      store(out + j * stride + c * W, load<V>(out + j * stride + c * W) + sum[j][c]);
}

template <typename T, int J>
void reduce_columns(const T *a, int64_t stride, const T *dz, int rows, T *out) {
  constexpr int W = kWidth<T>;
  int64_t i = 0;
  for (; i + kColumns * W <= stride; i += kColumns * W)
    reduce_rows<T, J, kColumns>(a + i, stride, dz, rows, out + i);
  const int left = int((stride - i) / W);
  if (left == 3) reduce_rows<T, J, 3>(a + i, stride, dz, rows, out + i);
  if (left == 2) reduce_rows<T, J, 2>(a + i, stride, dz, rows, out + i);
  if (left == 1) reduce_rows<T, J, 1>(a + i, stride, dz, rows, out + i);
}

template <typename T>
void reduce(const T *a, int64_t stride, const T *dz, int count, int rows, T *out, Ahead &ahead,
            int64_t lines) {
  for (int j = 0; j < count;) {
    ahead.fetch(lines);
    const int groups = (count - j + 3) / 4, size = (count - j + groups - 1) / groups;
    const T *d = dz + j * kTile;
    T *o = out + j * stride;
    if (size == 4) reduce_columns<T, 4>(a, stride, d, rows, o);
    if (size == 3) reduce_columns<T, 3>(a, stride, d, rows, o);
    if (size == 2) reduce_columns<T, 2>(a, stride, d, rows, o);
    if (size == 1) reduce_columns<T, 1>(a, stride, d, rows, o);
    j += size;
  }
}

// grad (rows, H) = dz^T h for four rows and C vectors of columns; the last may reach into the next
// row, which is written later.
template <typename T, int C>
void gradient_rows(const T *h, int64_t stride, const T *dz, int count, T *grad, int64_t width) {
  constexpr int W = kWidth<T>;
  using V = typename VectorOf<T, W>::type;
  V sum[kGroup][C] = {};
  for (int j = 0; j < count; ++j) {
    V x[C];
    UNROLL for (int c = 0; c < C; ++c) {
      x[c] = load<V>(h + j * stride + c * W);
      KEEP(x[c]);
    }
    UNROLL for (int r = 0; r < kGroup; ++r)
      UNROLL for (int c = 0; c < C; ++c) sum[r][c] += dz[j * kTile + r] * x[c];
  }
  UNROLL for (int r = 0; r < kGroup; ++r)
    UNROLL for (int c = 0; c < C; ++c) store(grad + r * width + c * W, sum[r][c]);
}

template <typename T>
void gradient(const T *h, int64_t stride, const T *dz, int count, T *grad, int64_t width) {
  constexpr int W = kWidth<T>;
  const int tail = int(stride / W) % kColumns;
  int64_t i = stride - tail * W;
  if (tail == 3) gradient_rows<T, 3>(h + i, stride, dz, count, grad + i, width);
  if (tail == 2) gradient_rows<T, 2>(h + i, stride, dz, count, grad + i, width);
  if (tail == 1) gradient_rows<T, 1>(h + i, stride, dz, count, grad + i, width);
  while ((i -= kColumns * W) >= 0)
    gradient_rows<T, kColumns>(h + i, stride, dz, count, grad + i, width);
}

}  // namespace
