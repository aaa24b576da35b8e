// Passes over a head A (N, H) that is given boxes: centers A h + b and radii |A| rho, and Adam.
//
// `hidden` holds the k rows h, then the k rows rho; `dz` the gradients of the current centers, then
// of its radii. A target has N centers, and where radii are kept, N radii after them. A sum has one
// order, so a center or radius has the same bits for every number of boxes and in both passes.

// It ends head.cpp, whose blocks and Adam it uses.

#pragma once

namespace {

template <typename V>
inline V absolute(V x) {
  return x < 0 ? -x : x;
}

template <typename T>
inline T total(const T *lanes) {
  T sum[kWidth<T>];
  std::memcpy(sum, lanes, sizeof sum);
  for (int half = kWidth<T> / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

// Centers without bias and radii of a tile of padded rows, for boxes first .. count - 1.
template <typename T>
void box_logits(const T *a, int64_t stride, const T *h, int count, int first, T *c, T *radius) {
  using V = typename VectorOf<T, kWidth<T>>::type;
  const T *rho = h + count * stride;
  for (int r = 0; r < kTile; r += kGroup)
    for (int j = first; j < count; ++j) {
      V center[kGroup] = {}, spread[kGroup] = {};
      for (int64_t i = 0; i < stride; i += kWidth<T>) {
        const V x = load<V>(h + j * stride + i), e = load<V>(rho + j * stride + i);
        UNROLL for (int q = 0; q < kGroup; ++q) {
          const V w = load<V>(a + (r + q) * stride + i);
          center[q] += w * x;
          spread[q] += absolute(w) * e;
        }
      }
      for (int q = 0; q < kGroup; ++q) {
        T lanes[kWidth<T>];
        store(lanes, center[q]);
        c[j * kTile + r + q] = total(lanes);
        store(lanes, spread[q]);
        radius[j * kTile + r + q] = total(lanes);
      }
    }
}

// out (2 k, H): += dc (k, tile) a, and dr (k, tile) |a|; J boxes together.
template <typename T, int J>
void reduce_boxes(const T *a, int64_t stride, const T *dc, const T *dr, T *out, T *spread) {
  using V = typename VectorOf<T, kWidth<T>>::type;
  for (int64_t i = 0; i < stride; i += kWidth<T>) {
    V center[J] = {}, radius[J] = {};
    for (int r = 0; r < kTile; ++r) {
      const V w = load<V>(a + r * stride + i), size = absolute(w);
      UNROLL for (int j = 0; j < J; ++j) {
        center[j] += dc[j * kTile + r] * w;
        radius[j] += dr[j * kTile + r] * size;
      }
    }
    UNROLL for (int j = 0; j < J; ++j) {
      T *o = out + j * stride + i, *s = spread + j * stride + i;
      store(o, load<V>(o) + center[j]);
      store(s, load<V>(s) + radius[j]);
    }
  }
}

// grad (rows, H) = dc^T h + sign(a) * (dr^T rho), for four padded rows, written without the padding.
template <typename T>
void box_gradient(const T *a, int64_t stride, const T *h, int count, const T *dc, const T *dr,
                  T *grad, int64_t width) {
  using V = typename VectorOf<T, kWidth<T>>::type;
  const T *rho = h + count * stride;
  // A row's last vector reaches into the next row, which is written later.
  for (int q = 0; q < kGroup; ++q) {
    for (int64_t i = 0; i < stride; i += kWidth<T>) {
      V center = {}, spread = {};
      for (int j = 0; j < count; ++j) {
        center += dc[j * kTile + q] * load<V>(h + j * stride + i);
        spread += dr[j * kTile + q] * load<V>(rho + j * stride + i);
      }
      const V w = load<V>(a + q * stride + i);
      const V zero = {};
      store(grad + q * width + i, center + (w > 0 ? spread : (w < 0 ? -spread : zero)));
    }
  }
}

template <typename T>
void padded(const T *from, int64_t width, int rows, T *to, int64_t stride) {
  for (int r = 0; r < rows; ++r) std::memcpy(to + r * stride, from + r * width, width * sizeof(T));
  for (int r = rows; r < kTile; ++r) std::memset(to + r * stride, 0, width * sizeof(T));
}

template <typename T>
void boxes(Pass &pass) {
  const int64_t width = pass.width, rows = pass.rows;
  const int64_t stride = (width + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
  const int count = int(pass.count);
  const T *weight = static_cast<const T *>(pass.weight), *bias = static_cast<const T *>(pass.bias);
  T *out = static_cast<T *>(pass.logits);
  T *h = allocate<T>(2 * count * stride), *a = allocate<T>(kTile * stride);
  T *c = allocate<T>(2 * int64_t(count) * kTile), *radius = c + count * kTile;
  for (int j = 0; j < 2 * count; ++j)
    std::memcpy(h + j * stride, static_cast<const T *>(pass.hidden) + j * width, width * sizeof(T));
  for (int64_t block; (block = claim(pass)) < pass.blocks;) {
    const int64_t end = std::min(rows, (block + 1) * pass.block_rows);
    for (int64_t row = block * pass.block_rows; row < end; row += kTile) {
      const int tile = int(std::min<int64_t>(kTile, end - row));
      padded(weight + row * width, width, tile, a, stride);
      box_logits(a, stride, h, count, 0, c, radius);
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
  T residual[kTile] = {};
  for (int r = 0; r < tile; ++r)
    residual[r] = difference(bias ? z[r] + bias[r] : z[r], target[r]);
  for (int r = 0; r < kTile; ++r) sums[r % kLanes] += weight * double(residual[r]) * double(residual[r]);
  for (int r = 0; r < kTile; ++r) z[r] = factor * residual[r];
}

template <typename T, typename M, bool Radii>
void update_boxes(Pass &pass) {
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
  T *a = allocate<T>(kTile * stride), *grad = allocate<T>((kTile + 1) * stride);
  T *dc = allocate<T>(2 * int64_t(count) * kTile), *dr = dc + count * kTile;
  const Adam<T, M> adam(pass);
  const T factor = T(pass.coefficient), of_radii = Radii ? factor * T(2) / T(3) : T(0);
  const auto form = pass.bfloat16_targets ? box_residuals<T, BFloat16> : box_residuals<T, T>;
  const int64_t kept = Radii ? 2 * rows : rows;
  int whole = kGroup;
  while (whole < kTile && whole * width % kWidth<T>) whole *= 2;
  for (int j = 0; j < 2 * count; ++j)
    std::memcpy(h + j * stride, static_cast<const T *>(pass.hidden) + j * width, width * sizeof(T));
  for (int64_t block; (block = claim(pass)) < pass.blocks;) {
    const int64_t end = std::min(rows, (block + 1) * pass.block_rows);
    double squares[kLanes] = {};
    std::memset(sum, 0, 2 * count * stride * sizeof(T));
    for (int64_t row = block * pass.block_rows; row < end; row += kTile) {
      const int tile = int(std::min<int64_t>(kTile, end - row));
      padded(weight + row * width, width, tile, a, stride);
      if (count > 1) box_logits(a, stride, h, count, 1, dc, dr);
      std::memset(dc, 0, kTile * sizeof(T));
      std::memset(dr, 0, kTile * sizeof(T));
      std::memcpy(dc, current + row, tile * sizeof(T));
      std::memcpy(dr, current + rows + row, tile * sizeof(T));
      for (int j = 1; j < count; ++j) {
        const int64_t at = (j - 1) * kept + row;
        form(pass.targets, at, tile, bias + row, factor, 1.0, dc + j * kTile, squares);
        if (Radii) form(pass.targets, at + rows, tile, nullptr, of_radii, 2.0 / 3.0, dr + j * kTile, squares);
        else std::memset(dr + j * kTile, 0, kTile * sizeof(T));
      }
      for (int j = 0; j < count;) {
        const int size = std::min(4, count - j);
        const T *c = dc + j * kTile, *r = dr + j * kTile;
        T *o = sum + j * stride, *s = sum + (count + j) * stride;
        if (size == 4) reduce_boxes<T, 4>(a, stride, c, r, o, s);
        if (size == 3) reduce_boxes<T, 3>(a, stride, c, r, o, s);
        if (size == 2) reduce_boxes<T, 2>(a, stride, c, r, o, s);
        if (size == 1) reduce_boxes<T, 1>(a, stride, c, r, o, s);
        j += size;
      }
      for (int r = 0; r < tile; r += whole) {
        const int batch = std::min(whole, tile - r);
        for (int q = 0; q < batch; q += kGroup)
          box_gradient(a + (r + q) * stride, stride, h, count, dc + r + q, dr + r + q,
                       grad + q * width, width);
        const int64_t at = (row + r) * width;
        adam(grad, weight + at, exp_avg + at, exp_avg_sq + at, batch * width);
      }
      for (int r = 0; r < kTile; ++r) {
        grad[r] = dc[r];
        for (int j = 1; j < count; ++j) grad[r] += dc[j * kTile + r];
      }
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
