// Passes over a head A (N, H) that is given boxes: centers A h + b and radii |A| rho, and Adam.
//
// `hidden` holds the k rows h, then the k rows rho; `dz` the gradients of the current centers, then
// of its radii. A target has N centers, and where radii are kept, N radii after them. A sum has one
// order, so a center or radius has the same bits for every number of boxes and in both passes.

// It ends head.cpp, whose blocks and Adam it uses.

#pragma once

#include <limits>
#include <type_traits>
#include <utility>

namespace {

constexpr int kPairs = kVectorBytes == 64 ? 4 : 2;  // boxes whose sums stay in registers

template <typename T>
using Bits = typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type;
template <typename T>
using Vector = typename VectorOf<T, kWidth<T>>::type;
template <typename T>
using BitVector = typename VectorOf<Bits<T>, kWidth<T>>::type;

template <typename T>
inline Vector<T> absolute(Vector<T> x) {
  return (Vector<T>)((BitVector<T>)x & std::numeric_limits<Bits<T>>::max());
}

// sign(w) x, 0 where w is 0.
template <typename T>
inline Vector<T> with_sign(Vector<T> w, Vector<T> x) {
  const BitVector<T> sign = (BitVector<T>)w & std::numeric_limits<Bits<T>>::min();
  const Vector<T> zero = {};
  return w != 0 ? (Vector<T>)((BitVector<T>)x ^ sign) : zero;
}

// a and b interleaved, from their element `First` on.
template <typename T, int First, int... I>
inline Vector<T> interleaved(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  constexpr int W = kWidth<T>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I % 2 * W + First + I / 2)...);
#else
  return __builtin_shuffle(a, b, BitVector<T>{(I % 2 * W + First + I / 2)...});
#endif
}

// at (stride, kTile) = the transpose of a (kTile, stride).
template <typename T>
void transpose(const T *a, int64_t stride, T *at, Ahead &ahead, int64_t lines) {
  constexpr int W = kWidth<T>;
  constexpr std::make_integer_sequence<int, W> all{};
  for (int r = 0; r < kTile; r += W)
    for (int64_t i = 0; i < stride; i += W) {
      ahead.fetch(lines);
      Vector<T> x[W], y[W];
      UNROLL for (int k = 0; k < W; ++k) x[k] = load<Vector<T>>(a + (r + k) * stride + i);
      UNROLL for (int turn = 1; turn < W; turn *= 2) {
        UNROLL for (int k = 0; k < W / 2; ++k) {
          y[2 * k] = interleaved<T, 0>(x[k], x[k + W / 2], all);
          y[2 * k + 1] = interleaved<T, W / 2>(x[k], x[k + W / 2], all);
        }
        UNROLL for (int k = 0; k < W; ++k) x[k] = y[k];
      }
      UNROLL for (int k = 0; k < W; ++k) store(at + (i + k) * kTile + r, x[k]);
    }
}

// Centers without bias, and radii if asked for, of J boxes and two vectors of rows of the transposed
// tile: one chain each, over columns.
template <typename T, int J, bool Radii>
void box_dots(const T *at, const T *h, const T *rho, int64_t stride, int64_t width, T *c, T *radius) {
  constexpr int W = kWidth<T>;
  Vector<T> center[J][2] = {}, spread[J][2] = {};
  for (int64_t i = 0; i < width; ++i) {
    Vector<T> x[2], size[2];
    UNROLL for (int v = 0; v < 2; ++v) {
      x[v] = load<Vector<T>>(at + i * kTile + v * W);
      KEEP(x[v]);
      size[v] = absolute<T>(x[v]);
    }
    UNROLL for (int j = 0; j < J; ++j)
      UNROLL for (int v = 0; v < 2; ++v) {
        center[j][v] += h[j * stride + i] * x[v];
        if (Radii) spread[j][v] += rho[j * stride + i] * size[v];
      }
  }
  UNROLL for (int j = 0; j < J; ++j)
    UNROLL for (int v = 0; v < 2; ++v) {
      store(c + j * kTile + v * W, center[j][v]);
      if (Radii) store(radius + j * kTile + v * W, spread[j][v]);
    }
}

// Those of a tile and `count` boxes.
template <typename T, bool Radii>
void box_logits(const T *at, const T *h, const T *rho, int64_t stride, int64_t width, int count,
                T *c, T *radius) {
  for (int r = 0; r < kTile; r += 2 * kWidth<T>)
    for (int j = 0; j < count; j += kPairs) {
      const int size = std::min(kPairs, count - j);
      const auto dots = size == 1   ? box_dots<T, 1, Radii>
                        : size == 2 ? box_dots<T, 2, Radii>
                        : size == 3 ? box_dots<T, 3, Radii>
                                    : box_dots<T, 4, Radii>;
      const int64_t first = j * stride, out = j * kTile + r;
      dots(at + r, h + first, rho + first, stride, width, c + out, radius + out);
    }
}

// out (J, H) += dc (J, tile) a, and of spreads += dr (J, tile) |a|, for C vectors of columns.
template <typename T, int J, int C, bool Radii>
void reduce_columns_of_boxes(const T *a, int64_t stride, const T *dc, const T *dr, T *out, T *spread) {
  constexpr int W = kWidth<T>;
  Vector<T> center[J][C] = {}, radius[J][C] = {};
  for (int r = 0; r < kTile; ++r) {
    Vector<T> w[C], size[C];
    UNROLL for (int v = 0; v < C; ++v) {
      w[v] = load<Vector<T>>(a + r * stride + v * W);
      KEEP(w[v]);
      size[v] = absolute<T>(w[v]);
    }
    UNROLL for (int j = 0; j < J; ++j)
      UNROLL for (int v = 0; v < C; ++v) {
        center[j][v] += dc[j * kTile + r] * w[v];
        if (Radii) radius[j][v] += dr[j * kTile + r] * size[v];
      }
  }
  UNROLL for (int j = 0; j < J; ++j)
    UNROLL for (int v = 0; v < C; ++v) {
      T *o = out + j * stride + v * W, *s = spread + j * stride + v * W;
      store(o, load<Vector<T>>(o) + center[j][v]);
      if (Radii) store(s, load<Vector<T>>(s) + radius[j][v]);
    }
}

template <typename T, int J, bool Radii>
void reduce_boxes(const T *a, int64_t stride, const T *dc, const T *dr, T *out, T *spread) {
  constexpr int W = kWidth<T>;
  int64_t i = 0;
  for (; i + 2 * W <= stride; i += 2 * W)
    reduce_columns_of_boxes<T, J, 2, Radii>(a + i, stride, dc, dr, out + i, spread + i);
  if (i < stride)
    reduce_columns_of_boxes<T, J, 1, Radii>(a + i, stride, dc, dr, out + i, spread + i);
}

// That of `count` boxes.
template <typename T, bool Radii>
void reduce(const T *a, int64_t stride, int count, const T *dc, const T *dr, T *out, T *spread) {
  for (int j = 0; j < count;) {
    const int groups = (count - j + kPairs - 1) / kPairs, size = (count - j + groups - 1) / groups;
    const auto form = size == 1   ? reduce_boxes<T, 1, Radii>
                      : size == 2 ? reduce_boxes<T, 2, Radii>
                      : size == 3 ? reduce_boxes<T, 3, Radii>
                                  : reduce_boxes<T, 4, Radii>;
    const int64_t first = j * kTile, at = j * stride;
    form(a, stride, dc + first, dr + first, out + at, spread + at);
    j += size;
  }
}

// grad (rows, H) = dc^T h + sign(a) * (dr^T rho) of `count` boxes, of which `spreads` have a dr, for
// four padded rows and C vectors of columns; the last may reach into the next row, which is written
// later.
template <typename T, int C>
void gradient_of_boxes(const T *a, int64_t stride, const T *h, const T *rho, int count, int spreads,
                       const T *dc, const T *dr, T *grad, int64_t width) {
  constexpr int W = kWidth<T>;
  Vector<T> center[kGroup][C] = {}, spread[kGroup][C] = {};
  const auto add = [&](const T *rows, const T *factors, int boxes, Vector<T>(&sum)[kGroup][C]) {
    for (int j = 0; j < boxes; ++j) {
      Vector<T> x[C];
      UNROLL for (int v = 0; v < C; ++v) {
        x[v] = load<Vector<T>>(rows + j * stride + v * W);
        KEEP(x[v]);
      }
      UNROLL for (int q = 0; q < kGroup; ++q)
        UNROLL for (int v = 0; v < C; ++v) sum[q][v] += factors[j * kTile + q] * x[v];
    }
  };
  add(h, dc, count, center);
  add(rho, dr, spreads, spread);
  UNROLL for (int q = 0; q < kGroup; ++q)
    UNROLL for (int v = 0; v < C; ++v) {
      const Vector<T> w = load<Vector<T>>(a + q * stride + v * W);
      store(grad + q * width + v * W, center[q][v] + with_sign<T>(w, spread[q][v]));
    }
}

template <typename T>
void box_gradient(const T *a, int64_t stride, const T *h, const T *rho, int count, int spreads,
                  const T *dc, const T *dr, T *grad, int64_t width) {
  constexpr int W = kWidth<T>;
  int64_t i = stride;
  if (stride / W % 2) {
    i -= W;
    gradient_of_boxes<T, 1>(a + i, stride, h + i, rho + i, count, spreads, dc, dr, grad + i, width);
  }
  while ((i -= 2 * W) >= 0)
    gradient_of_boxes<T, 2>(a + i, stride, h + i, rho + i, count, spreads, dc, dr, grad + i, width);
}

// A tile of rows, padded with zeros to whole vectors and to a whole tile.
template <typename T>
void padded(const T *from, int64_t width, int rows, T *to, int64_t stride) {
  const int64_t whole = width / kWidth<T> * kWidth<T>;
  for (int r = 0; r < rows; ++r, from += width, to += stride) {
    for (int64_t i = 0; i < whole; i += kWidth<T>) store(to + i, load<Vector<T>>(from + i));
    for (int64_t i = whole; i < width; ++i) to[i] = from[i];
  }
  std::memset(to, 0, (kTile - rows) * stride * sizeof(T));
}

template <typename T>
void boxes(Pass &pass) {
  const FlushSubnormals flush;
  const int64_t width = pass.width, rows = pass.rows;
  const int64_t stride = (width + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
  const int count = int(pass.count);
  const T *weight = static_cast<const T *>(pass.weight), *bias = static_cast<const T *>(pass.bias);
  T *out = static_cast<T *>(pass.logits);
  T *h = allocate<T>(2 * count * stride), *a = allocate<T>(2 * kTile * stride);
  T *at = a + kTile * stride;
  T *c = allocate<T>(2 * int64_t(count) * kTile), *radius = c + count * kTile;
  for (int j = 0; j < 2 * count; ++j)
    std::memcpy(h + j * stride, static_cast<const T *>(pass.hidden) + j * width, width * sizeof(T));
  constexpr int64_t lines = kWidth<T> * kWidth<T> * sizeof(T) / 64;  // those of a square
  for (int64_t block; (block = claim(pass)) < pass.blocks;) {
    const int64_t end = std::min(rows, (block + 1) * pass.block_rows);
    for (int64_t row = block * pass.block_rows; row < end; row += kTile) {
      const int tile = int(std::min<int64_t>(kTile, end - row));
      Ahead ahead(weight, width, row, end);
      padded(weight + row * width, width, tile, a, stride);
      transpose(a, stride, at, ahead, lines);
      box_logits<T, true>(at, h, h + count * stride, stride, width, count, c, radius);
      for (int j = 0; j < count; ++j)
        for (int r = 0; r < tile; ++r) {
          out[2 * j * rows + row + r] = c[j * kTile + r] + bias[row + r];
          out[(2 * j + 1) * rows + row + r] = radius[j * kTile + r];
        }
    }
  }
  for (T *buffer : {h, a, c}) std::free(buffer);
}

// Residuals of a tile in place, times a factor; their squares, times a weight, go to sums[lane].
template <typename T, typename S>
void box_residuals(const void *targets, int64_t at, int tile, const T *bias, T factor,
                   double weight, T *z, double *sums) {
  const S *target = static_cast<const S *>(targets) + at;
  T offset[kTile] = {}, residual[kTile] = {};
  if (bias) std::memcpy(offset, bias, tile * sizeof(T));
  if (tile == kTile)
    for (int r = 0; r < kTile; ++r) residual[r] = difference(z[r] + offset[r], target[r]);
  else
    for (int r = 0; r < tile; ++r) residual[r] = difference(z[r] + offset[r], target[r]);
  for (int r = 0; r < kTile; r += kLanes)
    for (int l = 0; l < kLanes; ++l)
      sums[l] += weight * double(residual[r + l]) * double(residual[r + l]);
  for (int r = 0; r < kTile; ++r) z[r] = factor * residual[r];
}

template <typename T, typename M, bool Radii>
void update_boxes(Pass &pass) {
  const FlushSubnormals flush;
  const int64_t width = pass.width, rows = pass.rows;
  const int64_t stride = (width + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
  const int count = int(pass.count);
  const T *current = static_cast<const T *>(pass.dz);
  T *weight = static_cast<T *>(pass.weight), *bias = static_cast<T *>(pass.bias);
  M *exp_avg = static_cast<M *>(pass.exp_avg), *exp_avg_sq = static_cast<M *>(pass.exp_avg_sq);
  T *bias_grad = static_cast<T *>(pass.bias_grad);
  M *bias_exp_avg = static_cast<M *>(pass.bias_exp_avg);
  M *bias_exp_avg_sq = static_cast<M *>(pass.bias_exp_avg_sq);
  T *h = allocate<T>(2 * count * stride), *sum = allocate<T>(2 * count * stride);
  T *a = allocate<T>(2 * kTile * stride), *at = a + kTile * stride;
  T *grad = allocate<T>((kTile + 1) * stride);
  T *dc = allocate<T>(2 * int64_t(count) * kTile), *dr = dc + count * kTile;
  const T *rho = h + count * stride;
  T *spread = sum + count * stride;
  const int spreads = Radii ? count : 1;  // boxes whose radii have a gradient
  const Adam<T, M> adam(pass);
  const T factor = T(pass.coefficient), of_radii = Radii ? factor * T(2) / T(3) : T(0);
  const auto form = pass.bfloat16_targets ? box_residuals<T, BFloat16> : box_residuals<T, T>;
  const int64_t kept = Radii ? 2 * rows : rows;
  int whole = kGroup;
  while (whole < kTile && whole * width % kWidth<T>) whole *= 2;
  const int64_t group_lines = kGroup * width * sizeof(T) / 64 + 1;
  for (int j = 0; j < 2 * count; ++j)
    std::memcpy(h + j * stride, static_cast<const T *>(pass.hidden) + j * width, width * sizeof(T));
  for (int64_t block; (block = claim(pass)) < pass.blocks;) {
    const int64_t end = std::min(rows, (block + 1) * pass.block_rows);
    double squares[kLanes] = {};
    std::memset(sum, 0, 2 * count * stride * sizeof(T));
    for (int64_t row = block * pass.block_rows; row < end; row += kTile) {
      const int tile = int(std::min<int64_t>(kTile, end - row));
      Ahead ahead(weight, width, row, end);
      padded(weight + row * width, width, tile, a, stride);
      if (count > 1) {
        transpose(a, stride, at, ahead, 0);
        box_logits<T, Radii>(at, h + stride, rho + stride, stride, width, count - 1, dc + kTile,
                             dr + kTile);
      }
      std::memset(dc, 0, kTile * sizeof(T));
      std::memset(dr, 0, kTile * sizeof(T));
      std::memcpy(dc, current + row, tile * sizeof(T));
      std::memcpy(dr, current + rows + row, tile * sizeof(T));
      for (int j = 1; j < count; ++j) {
        const int64_t from = (j - 1) * kept + row;
        T *c = dc + j * kTile, *r = dr + j * kTile;
        form(pass.targets, from, tile, bias + row, factor, 1.0, c, squares);
        if (Radii) form(pass.targets, from + rows, tile, nullptr, of_radii, 2.0 / 3.0, r, squares);
      }
      reduce<T, true>(a, stride, spreads, dc, dr, sum, spread);
      if (spreads < count)
        reduce<T, false>(a, stride, count - spreads, dc + spreads * kTile, dr, sum + spreads * stride,
                         spread);
      for (int r = 0; r < tile; r += whole) {
        const int batch = std::min(whole, tile - r);
        for (int q = 0; q < batch; q += kGroup) {
          ahead.fetch(group_lines);
          box_gradient(a + (r + q) * stride, stride, h, rho, count, spreads, dc + r + q, dr + r + q,
                       grad + q * width, width);
        }
        const int64_t from = (row + r) * width;
        adam(grad, weight + from, exp_avg + from, exp_avg_sq + from, batch * width);
      }
      sum_rows(dc, count, grad);
      if (bias_grad) std::memcpy(bias_grad + row, grad, tile * sizeof(T));
      else adam(grad, bias + row, bias_exp_avg + row, bias_exp_avg_sq + row, tile);
    }
    for (int j = 0; j < 2 * count; ++j)
      for (int64_t i = 0; i < width; ++i)
        pass.hidden_grad[(block * 2 * count + j) * width + i] = double(sum[j * stride + i]);
    for (int l = 0; l < kLanes; ++l) pass.regularizer[block * kLanes + l] = squares[l];
  }
  for (T *buffer : {h, sum, a, grad, dc}) std::free(buffer);
}

}  // namespace

extern "C" {
void boxes_float32(Pass *pass) { boxes<float>(*pass); }
void boxes_float64(Pass *pass) { boxes<double>(*pass); }
void update_boxes_float32(Pass *pass) { update_boxes<float, float, true>(*pass); }
void update_boxes_float64(Pass *pass) { update_boxes<double, double, true>(*pass); }
void update_boxes_float32_bfloat16(Pass *pass) { update_boxes<float, BFloat16, true>(*pass); }
void update_boxes_float64_bfloat16(Pass *pass) { update_boxes<double, BFloat16, true>(*pass); }
void update_centers_float32(Pass *pass) { update_boxes<float, float, false>(*pass); }
void update_centers_float64(Pass *pass) { update_boxes<double, double, false>(*pass); }
void update_centers_float32_bfloat16(Pass *pass) { update_boxes<float, BFloat16, false>(*pass); }
void update_centers_float64_bfloat16(Pass *pass) { update_boxes<double, BFloat16, false>(*pass); }
}
