// Passes over a hypernetwork's head A (N, H): logits, hidden gradient, and Adam from the factors.
//
// Work is split into blocks of rows whose bounds the caller fixes, and every sum has one order, so
// no result depends on the number of threads. A logit is four interleaved chains of fused
// multiply-adds, chain c over columns c, c + 4, ..., joined as (0 + 1) + (2 + 3), plus the bias:
// the same bits for every number of embeddings and in every pass.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "head_vectors.h"

namespace {

// Mirrored by hypermask_fast.native.head.HeadPass.
struct Pass {
  int64_t rows, width, count, given, bfloat16_targets, block_rows, blocks, next;
  void *weight, *bias, *exp_avg, *exp_avg_sq, *bias_exp_avg, *bias_exp_avg_sq;
  const void *hidden, *dz, *targets;
  void *logits, *bias_grad;
  double *hidden_grad, *regularizer;
  double coefficient, scale, decay, l2, lerp, lerp_square, eps, step_size;
};

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

// torch.optim.Adam's single-tensor update, in its order of operations save that the bias
// correction of the denominator is multiplied into its other terms.
template <typename T, typename M>
struct Adam {
  T scale, decay, l2, weight, rest, beta2, square, eps, step;

  explicit Adam(const Pass &pass)
      : scale(T(pass.scale)), decay(T(pass.decay)), l2(T(pass.l2)), weight(T(pass.lerp)),
        rest(T(1) - weight), beta2(T(1 - pass.lerp_square)), square(T(pass.lerp_square)),
        eps(T(pass.eps)), step(T(-pass.step_size)) {}

  template <bool Coupled, bool FromStart>
  void loop(const T *__restrict grad, T *__restrict p, M *__restrict exp_avg,
            M *__restrict exp_avg_sq, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      T g = grad[i] * scale;
      if (Coupled) g += l2 * p[i];
      const T old = T(widen(exp_avg[i])), away = g - old;
      const T m = FromStart ? old + weight * away : g - away * rest;
      const T v = beta2 * T(widen(exp_avg_sq[i])) + square * g * g;
      p[i] = p[i] * decay + step * m / (std::sqrt(v) + eps);
      narrow(m, exp_avg[i]);
      narrow(v, exp_avg_sq[i]);
    }
  }

  void operator()(const T *grad, T *p, M *exp_avg, M *exp_avg_sq, int64_t count) const {
    const bool from_start = weight < T(0.5);
    if (l2 == 0 && from_start) loop<false, true>(grad, p, exp_avg, exp_avg_sq, count);
    if (l2 == 0 && !from_start) loop<false, false>(grad, p, exp_avg, exp_avg_sq, count);
    if (l2 != 0 && from_start) loop<true, true>(grad, p, exp_avg, exp_avg_sq, count);
    if (l2 != 0 && !from_start) loop<true, false>(grad, p, exp_avg, exp_avg_sq, count);
  }
};

// Rows of whole vectors. What pads them, and rows past the last, reaches no result.
template <typename T>
void copy_rows(const T *from, int64_t width, int rows, T *to, int64_t stride) {
  using V = typename VectorOf<T, kWidth<T>>::type;
  for (int r = 0; r < rows; ++r, from += width, to += stride)
    if ((rows - r) * width >= stride)
      for (int64_t i = 0; i < stride; i += kWidth<T>) store(to + i, load<V>(from + i));
    else
      std::memcpy(to, from, width * sizeof(T));
}

int64_t claim(Pass &pass) { return __atomic_fetch_add(&pass.next, 1, __ATOMIC_RELAXED); }

template <typename T>
void logits(Pass &pass) {
  const int64_t width = pass.width, rows = pass.rows;
  const int count = int(pass.count);
  const Packed<T> packed(static_cast<const T *>(pass.hidden), width, count, 0);
  const T *weight = static_cast<const T *>(pass.weight), *bias = static_cast<const T *>(pass.bias);
  T *out = static_cast<T *>(pass.logits);
  T *z = allocate<T>(int64_t(count) * kTile), *last = allocate<T>(kGroup * width);
  for (int64_t block; (block = claim(pass)) < pass.blocks;) {
    const int64_t end = std::min(rows, (block + 1) * pass.block_rows);
    for (int64_t row = block * pass.block_rows; row < end; row += kTile) {
      const int tile = int(std::min<int64_t>(kTile, end - row)), whole = tile / kGroup * kGroup;
      Ahead ahead;
      if (row + 2 * kTile < end) ahead.add(weight + (row + kTile) * width, kTile * width * sizeof(T));
      packed.logits(weight + row * width, width, whole, z, ahead);
      if (whole < tile) {
        std::memcpy(last, weight + (row + whole) * width, (tile - whole) * width * sizeof(T));
        packed.logits(last, width, tile - whole, z + whole, ahead);
      }
      for (int j = 0; j < count; ++j)
        for (int r = 0; r < tile; ++r) out[j * rows + row + r] = z[j * kTile + r] + bias[row + r];
    }
  }
  std::free(z);
  std::free(last);
}

// Residuals of the tile's logits in place, times the coefficient; squares go to sums[lane].
template <typename T, typename S>
void residuals(const Pass &pass, int64_t row, int tile, T *z, double *sums) {
  const T *bias = static_cast<const T *>(pass.bias) + row;
  const T coefficient = T(pass.coefficient);
  for (int64_t j = 0; j < pass.count - pass.given; ++j, z += kTile) {
    const S *target = static_cast<const S *>(pass.targets) + j * pass.rows + row;
    T residual[kTile] = {};
    for (int r = 0; r < tile; ++r) residual[r] = difference(z[r] + bias[r], target[r]);
    for (int r = 0; r < kTile; r += kLanes)
      for (int l = 0; l < kLanes; ++l) sums[l] += double(residual[r + l]) * double(residual[r + l]);
    for (int r = 0; r < kTile; ++r) z[r] = coefficient * residual[r];
  }
}

template <typename T, typename M>
void update(Pass &pass) {
  const int64_t width = pass.width, rows = pass.rows;
  const int64_t stride = (width + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
  const int count = int(pass.count), given = int(pass.given);
  const T *hidden = static_cast<const T *>(pass.hidden);
  const T *current = static_cast<const T *>(pass.dz);
  T *weight = static_cast<T *>(pass.weight), *bias = static_cast<T *>(pass.bias);
  M *exp_avg = static_cast<M *>(pass.exp_avg), *exp_avg_sq = static_cast<M *>(pass.exp_avg_sq);
  T *bias_grad = static_cast<T *>(pass.bias_grad);
  M *bias_exp_avg = static_cast<M *>(pass.bias_exp_avg);
  M *bias_exp_avg_sq = static_cast<M *>(pass.bias_exp_avg_sq);
  const Packed<T> packed(hidden, hidden ? width : 0, count, given);
  T *h = allocate<T>(count * stride), *sum = allocate<T>(count * stride);
  T *a = allocate<T>(kTile * stride), *dz = allocate<T>(int64_t(count) * kTile);
  T *grad = allocate<T>((kTile + 1) * stride);
  const Adam<T, M> adam(pass);
  int whole = kGroup;  // the fewest rows that are whole vectors to Adam
  while (whole < kTile && whole * width % kWidth<T>) whole *= 2;
  const int64_t tile_lines = kTile * width * sizeof(T) / 64;
  const int64_t group_lines = kGroup * width * (sizeof(T) + 2 * sizeof(M)) / 64 + 1;
  for (int j = 0; hidden && j < count; ++j)
    std::memcpy(h + j * stride, hidden + j * width, width * sizeof(T));
  for (int64_t block; (block = claim(pass)) < pass.blocks;) {
    const int64_t end = std::min(rows, (block + 1) * pass.block_rows);
    double squares[kLanes] = {};
    std::memset(sum, 0, count * stride * sizeof(T));
    for (int64_t row = block * pass.block_rows; row < end; row += kTile) {
      const int tile = int(std::min<int64_t>(kTile, end - row));
      Ahead ahead;
      if (row + 2 * kTile < end) {
        const int64_t next = (row + kTile) * width, elements = kTile * width;
        ahead.add(weight + next, elements * sizeof(T));
        if (exp_avg) ahead.add(exp_avg + next, elements * sizeof(M));
        if (exp_avg) ahead.add(exp_avg_sq + next, elements * sizeof(M));
      }
      for (int j = 0; j < given; ++j)
        std::memcpy(dz + j * kTile, current + j * rows + row, tile * sizeof(T));
      if (pass.hidden_grad) {
        copy_rows(weight + row * width, width, tile, a, stride);
        if (given < count) {
          packed.logits(a, stride, tile, dz + given * kTile, ahead);
          const auto form = pass.bfloat16_targets ? residuals<T, BFloat16> : residuals<T, T>;
          form(pass, row, tile, dz + given * kTile, squares);
        }
        reduce(a, stride, dz, count, tile, sum, ahead, exp_avg ? 0 : tile_lines * 4 / count + 1);
      }
      if (!exp_avg) continue;
      for (int r = 0; r < tile; r += whole) {
        const int batch = std::min(whole, tile - r);
        for (int q = 0; q < batch; q += kGroup) {
          ahead.fetch(group_lines);
          gradient(h, stride, dz + r + q, count, grad + q * width, width);
        }
        const int64_t at = (row + r) * width;
        adam(grad, weight + at, exp_avg + at, exp_avg_sq + at, batch * width);
      }
      if (!bias_exp_avg && !bias_grad) continue;
      for (int r = 0; r < kTile; ++r) {
        grad[r] = dz[r];
        for (int j = 1; j < count; ++j) grad[r] += dz[j * kTile + r];
      }
      if (bias_grad) std::memcpy(bias_grad + row, grad, tile * sizeof(T));
      else adam(grad, bias + row, bias_exp_avg + row, bias_exp_avg_sq + row, tile);
    }
    if (pass.hidden_grad)
      for (int j = 0; j < count; ++j)
        for (int64_t i = 0; i < width; ++i)
          pass.hidden_grad[(block * count + j) * width + i] = double(sum[j * stride + i]);
    if (pass.regularizer)
      for (int l = 0; l < kLanes; ++l) pass.regularizer[block * kLanes + l] = squares[l];
  }
  for (T *buffer : {h, sum, a, dz, grad}) std::free(buffer);
}

}  // namespace

extern "C" {
void logits_float32(Pass *pass) { logits<float>(*pass); }
void logits_float64(Pass *pass) { logits<double>(*pass); }
void update_float32(Pass *pass) { update<float, float>(*pass); }
void update_float64(Pass *pass) { update<double, double>(*pass); }
void update_float32_bfloat16(Pass *pass) { update<float, BFloat16>(*pass); }
void update_float64_bfloat16(Pass *pass) { update<double, BFloat16>(*pass); }
}

#include "boxes.h"
