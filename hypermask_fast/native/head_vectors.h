// Vectors of the machine's width, bfloat16, and memory that is fetched ahead, for head.cpp.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kColumns = 4;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kColumns = 2;
#else
constexpr int kVectorBytes = 16, kColumns = 2;
#endif
constexpr int kChains = 4;   // partial sums of a dot product
constexpr int kGroup = 4;    // rows that share the loads of an embedding
constexpr int kTile = 32;    // rows that stay in the first-level cache through all steps
constexpr int kLanes = 8;    // partial sums of the regularizer

// Accumulators stay in registers only where the compiler sees straight-line code.
#define UNROLL _Pragma("GCC unroll 16")

// Loads a vector once for all its uses; a compiler may take it from memory again for each.
#if defined(__AVX512F__)
#define KEEP(vector) asm("" : "+v"(vector))
#elif defined(__AVX__)
#define KEEP(vector) asm("" : "+x"(vector))
#else
#define KEEP(vector)
#endif

struct BFloat16 {
  uint16_t bits;
};

template <typename T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename T>
constexpr int kWidth = kVectorBytes / sizeof(T);

template <typename V, typename T>
inline V load(const T *p) {
  return *reinterpret_cast<const V *>(p);
}
template <typename V, typename T>
inline void store(T *p, V v) {
  *reinterpret_cast<V *>(p) = v;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
inline void narrow(T x, T &out) {
  out = x;
}
template <typename T>
inline void narrow(T x, BFloat16 &out) {
  const float value = float(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

template <typename T>
inline T difference(T z, T target) {
  return z - target;
}
// 0 where z rounds to the target.
template <typename T>
inline T difference(T z, BFloat16 target) {
  BFloat16 rounded;
  narrow(z, rounded);
  return widen(rounded) == widen(target) ? T(0) : z - T(widen(target));
}

inline bool keeps(BFloat16 target) { return widen(target) == widen(target); }
template <typename T>
inline bool keeps(T target) {
  return target == target;
}

template <typename T>
T *allocate(int64_t count) {
  const size_t bytes = (size_t(count) * sizeof(T) + 127) / 64 * 64;
  void *p = std::aligned_alloc(64, bytes);
  if (!p) std::abort();
  std::memset(p, 0, bytes);
  return static_cast<T *>(p);
}

// The rows of A in the tile after this one, fetched a few cache lines at a time between computations.
// Not their moments: Adam reads those at a pace that the CPU follows by itself.
class Ahead {
 public:
  template <typename T>
  Ahead(const T *a, int64_t width, int64_t row, int64_t end)
      : at_(reinterpret_cast<const char *>(a + (row + kTile) * width)),
        end_(at_ + (row + 2 * kTile < end ? kTile * width * sizeof(T) : 0)) {}
  void fetch(int64_t lines) {
    const char *stop = std::min(at_ + lines * 64, end_);
    for (; at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char *at_, *end_;
};

}  // namespace
