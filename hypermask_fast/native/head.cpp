// Passes over a hypernetwork's head A (N, H): logits, hidden gradient, and Adam from the factors.
//
// Work is split into blocks of rows whose bounds the caller fixes, and every sum has one order, so
// no result depends on the number of threads. A logit is four interleaved chains of fused
// multiply-adds, chain c over columns c, c + 4, ..., joined as (0 + 1) + (2 + 3), plus the bias:
// the same bits for every number of embeddings and in every pass that does not look ahead.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "head_products.h"
#include "subnormals.h"

namespace {

constexpr int kMany = 16;  // embeddings from which on A is transposed

// Mirrored by hypermask_fast.native.head.HeadPass.
struct Pass {
  int64_t rows, width, count, given, bfloat16_targets, looks_ahead, block_rows, blocks, next;
  void *weight, *bias, *exp_avg, *exp_avg_sq, *bias_exp_avg, *bias_exp_avg_sq;
  const void *hidden, *dz, *targets;
  void *logits, *bias_grad;
  double *hidden_grad, *regularizer;
  const int64_t *places, *limits;  // of each target's first number, and how many there are
  double coefficient, scale, decay, l2, lerp, lerp_square, eps, step_size, ahead_eps;
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
  // Rows of one vector: of four sums each would wait for what it was before.
  const int most = stride == kWidth<T> ? 8 : 4;
  for (int j = 0; j < count;) {
    ahead.fetch(lines);
    const int groups = (count - j + most - 1) / most, size = (count - j + groups - 1) / groups;
    const T *d = dz + j * kTile;
    T *o = out + j * stride;
    if (size == 8) reduce_rows<T, 8, 1>(a, stride, d, rows, o);
    if (size == 7) reduce_rows<T, 7, 1>(a, stride, d, rows, o);
    if (size == 6) reduce_rows<T, 6, 1>(a, stride, d, rows, o);
    if (size == 5) reduce_rows<T, 5, 1>(a, stride, d, rows, o);
    if (size == 4) reduce_columns<T, 4>(a, stride, d, rows, o);
    if (size == 3) reduce_columns<T, 3>(a, stride, d, rows, o);
    if (size == 2) reduce_columns<T, 2>(a, stride, d, rows, o);
    if (size == 1) reduce_columns<T, 1>(a, stride, d, rows, o);
    j += size;
  }
}

// grad (R, H) = dz^T h for R rows and C vectors of columns; the last may reach into the next row,
// which is written later.
template <typename T, int C, int R = kGroup>
void gradient_rows(const T *h, int64_t stride, const T *dz, int count, T *grad, int64_t width) {
  constexpr int W = kWidth<T>;
  using V = typename VectorOf<T, W>::type;
  V sum[R][C] = {};
  for (int j = 0; j < count; ++j) {
    V x[C];
    UNROLL for (int c = 0; c < C; ++c) {
      x[c] = load<V>(h + j * stride + c * W);
      KEEP(x[c]);
    }
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int c = 0; c < C; ++c) sum[r][c] += dz[j * kTile + r] * x[c];
  }
  UNROLL for (int r = 0; r < R; ++r)
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

// The same for any number of rows, which are written up to a multiple of kGroup.
template <typename T>
void gradients(const T *h, int64_t stride, const T *dz, int count, int rows, T *grad, int64_t width,
               Ahead &ahead, int64_t lines) {
  for (int q = 0; q < rows;) {
    ahead.fetch(lines);
    const bool narrow = stride == kWidth<T> && rows - q >= 2 * kGroup;
    if (narrow) gradient_rows<T, 1, 2 * kGroup>(h, stride, dz + q, count, grad + q * width, width);
    else gradient(h, stride, dz + q, count, grad + q * width, width);
    q += narrow ? 2 * kGroup : kGroup;
  }
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

  // What the step would nearly make of p: eps is not multiplied with the bias correction.
  void ahead(const T *__restrict grad, const T *__restrict p, const M *__restrict exp_avg,
             const M *__restrict exp_avg_sq, T ahead_eps, T *__restrict out, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      const T g = grad[i] * scale + l2 * p[i], old = T(widen(exp_avg[i]));
      const T m = old + weight * (g - old);
      const T v = beta2 * T(widen(exp_avg_sq[i])) + square * g * g;
      out[i] = p[i] * decay + step * m / (std::sqrt(v) + ahead_eps);
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

// out (kTile) = the sum of the rows of dz (count, kTile).
template <typename T>
void sum_rows(const T *dz, int count, T *__restrict out) {
  std::memcpy(out, dz, kTile * sizeof(T));
  for (int j = 1; j < count; ++j)
    for (int r = 0; r < kTile; ++r) out[r] += dz[j * kTile + r];
}

int64_t claim(Pass &pass) { return __atomic_fetch_add(&pass.next, 1, __ATOMIC_RELAXED); }

template <typename T>
void logits(Pass &pass) {
  const FlushSubnormals flush;
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
      Ahead ahead(weight, width, row, end);
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
void residuals(const Pass &pass, int64_t row, int tile, const T *bias, T *z, double *sums) {
  const T coefficient = T(pass.coefficient);
  for (int64_t j = 0; j < pass.count - pass.given; ++j, z += kTile) {
    const int64_t place = pass.places ? pass.places[j] : j * pass.rows;
    const S *target = static_cast<const S *>(pass.targets) + place + row;
    const int64_t left = pass.limits ? std::max<int64_t>(pass.limits[j] - row, 0) : tile;
    const int used = int(std::min<int64_t>(tile, left));
    // There may be more targets than streams that a CPU follows by itself.
    constexpr int line = 64 / int(sizeof(S));
    for (int r = 0; r < kTile; r += line) __builtin_prefetch(target + kTile + r, 0, 2);
    T residual[kTile] = {};
    if (used == kTile)
      for (int r = 0; r < kTile; ++r) residual[r] = difference(z[r] + bias[r], target[r]);
    else
      for (int r = 0; r < used; ++r) residual[r] = difference(z[r] + bias[r], target[r]);
    // A step that looks ahead may keep some of a task's outputs; elsewhere NaN is what went wrong.
    if (pass.looks_ahead)
      for (int r = 0; r < used; ++r)
        if (!keeps(target[r])) residual[r] = T(0);
    for (int r = 0; r < kTile; r += kLanes)
      for (int l = 0; l < kLanes; ++l) sums[l] += double(residual[r + l]) * double(residual[r + l]);
    for (int r = 0; r < kTile; ++r) z[r] = coefficient * residual[r];
  }
}

template <typename T, typename M>
void update(Pass &pass) {
  const FlushSubnormals flush;
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
  const int reduced = pass.looks_ahead ? given : 0;  // the first embedding with a hidden gradient
  T *shifted = pass.looks_ahead ? allocate<T>((kTile + 1) * stride) : nullptr;
  // There is no other pass whose bits these logits must have.
  const bool transposes = pass.looks_ahead && count - given >= kMany;
  T *transposed = transposes ? allocate<T>(kTile * width) : nullptr;
  // The fewest rows that are whole vectors to Adam. Of narrow ones a whole tile: what was just
  // written in parts of vectors cannot be read at once.
  int whole = stride == kWidth<T> ? kTile : kGroup;
  while (whole < kTile && whole * width % kWidth<T>) whole *= 2;
  const int64_t tile_lines = kTile * width * sizeof(T) / 64;
  const int64_t group_lines = kGroup * width * sizeof(T) / 64 + 1;
  for (int j = 0; hidden && j < count; ++j)
    std::memcpy(h + j * stride, hidden + j * width, width * sizeof(T));
  for (int64_t block; (block = claim(pass)) < pass.blocks;) {
    const int64_t end = std::min(rows, (block + 1) * pass.block_rows);
    double squares[kLanes] = {};
    std::memset(sum, 0, count * stride * sizeof(T));
    for (int64_t row = block * pass.block_rows; row < end; row += kTile) {
      const int tile = int(std::min<int64_t>(kTile, end - row));
      Ahead ahead(weight, width, row, end);
      for (int j = 0; j < given; ++j)
        std::memcpy(dz + j * kTile, current + j * rows + row, tile * sizeof(T));
      T shifted_bias[kTile];
      if (pass.looks_ahead) {
        for (int r = 0; r < tile; r += whole) {
          const int batch = std::min(whole, tile - r);
          gradients(h, stride, dz + r, given, batch, grad, width, ahead, 0);
          const int64_t at = (row + r) * width;
          adam.ahead(grad, weight + at, exp_avg + at, exp_avg_sq + at, T(pass.ahead_eps),
                     shifted + r * width, batch * width);
        }
        sum_rows(dz, given, grad);
        adam.ahead(grad, bias + row, bias_exp_avg + row, bias_exp_avg_sq + row, T(pass.ahead_eps),
                   shifted_bias, tile);
      }
      if (pass.hidden_grad) {
        copy_rows(shifted ? shifted : weight + row * width, width, tile, a, stride);
        if (given < count) {
          T *z = dz + given * kTile;
          const T *earlier = h + given * stride;
          if (transposed) many_logits(a, earlier, stride, width, count - given, transposed, z);
          else packed.logits(a, stride, tile, z, ahead);
          const auto form = pass.bfloat16_targets ? residuals<T, BFloat16> : residuals<T, T>;
          form(pass, row, tile, shifted ? shifted_bias : bias + row, z, squares);
        }
        reduce(a, stride, dz + reduced * kTile, count - reduced, tile, sum + reduced * stride,
               ahead, exp_avg ? 0 : tile_lines * 4 / count + 1);
      }
      if (!exp_avg) continue;
      for (int r = 0; r < tile; r += whole) {
        const int batch = std::min(whole, tile - r);
        gradients(h, stride, dz + r, count, batch, grad, width, ahead, group_lines);
        const int64_t at = (row + r) * width;
        adam(grad, weight + at, exp_avg + at, exp_avg_sq + at, batch * width);
      }
      if (!bias_exp_avg && !bias_grad) continue;
      sum_rows(dz, count, grad);
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
  for (T *buffer : {h, sum, a, dz, grad, shifted, transposed}) std::free(buffer);
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
