// What passes over the entries of a network's tensors share: phases that any number of threads go
// through together, and the bins of a selection by the values' leading bits.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace {

constexpr int kBins = 2048;

void wait_a_little(int &turns) {
  if (++turns > 1000) {
    sched_yield();
    return;
  }
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Runs item(i) for i < count, each once over all threads; returns when all have ended.
template <typename Work, typename F>
void phase(Work &work, int index, int64_t count, F item) {
  int64_t i;
  while ((i = __atomic_fetch_add(&work.next[index], 1, __ATOMIC_RELAXED)) < count) {
    item(i);
    __atomic_fetch_add(&work.done[index], 1, __ATOMIC_RELEASE);
  }
  int turns = 0;
  while (__atomic_load_n(&work.done[index], __ATOMIC_ACQUIRE) < count) wait_a_little(turns);
}

// Bins of numbers from 0 up by exponent and four bits of the fraction, in the order of the numbers;
// those of about 2 and more share the last one.
inline int bin(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return std::min(bits >> 19, kBins - 1);
}
inline int bin(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return int(std::min<int64_t>(std::max<int64_t>((bits >> 48) - 0x3800, 0), kBins - 1));
}

// NaN sorts above every number, as in torch.sort.
template <typename T>
bool before(T a, T b) {
  return a < b || (b != b && a == a);
}

template <typename T>
inline T sign(T x) {
  return x != x ? x : T(T(0) < x) - T(x < T(0));
}

}  // namespace
