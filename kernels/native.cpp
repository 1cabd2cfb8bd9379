// The loss's work on a CPU beside its matmuls; `native.py` builds it and is its face.
//
// Shapes: R rows, V vocabulary, D width.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct BFloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }

inline float load(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float& to, float x) { to = x; }

inline void store(BFloat16& to, float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>(x == x ? bits : 0x7fc0);
}

// the first where either is NaN
inline float larger(float a, float b) { return a < b ? b : a; }

// e^x for x ≤ 0, 0 below −87 (where fp32 has no normal numbers left); within 2 units in the last place. Of
// x = n·ln 2 + r with |r| ≤ ln 2 / 2, 2^n goes into the exponent's bits and e^r is its Taylor series to r⁷. Inlined,
// or the loops that call it would not be vectorised.
[[gnu::always_inline]] inline float exponential(float x) {
  const float low = -87.0f, clamped = x < low ? low : x;
  const float n = std::nearbyint(clamped * 1.44269504f);
  const float r = std::fma(n, 1.90465421e-9f, std::fma(n, -0.693147182f, clamped));
  float y = 1.0f / 5040;
  y = std::fma(y, r, 1.0f / 720);
  y = std::fma(y, r, 1.0f / 120);
  y = std::fma(y, r, 1.0f / 24);
  y = std::fma(y, r, 1.0f / 6);
  y = std::fma(y, r, 0.5f);
  y = std::fma(y * r, r, r + 1.0f);
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < low ? 0.0f : y * power;
}

// --- Row work for the forward KL and the cross-entropy: `rows.py` says what ------------------------------------------
//
// A row is swept three times while it lies in its core's cache: largest logits; exponentials, kept in fp32, with their
// sums; the gradient, written over the student's logits. Every row's sums are its own, so any number of threads gives
// the same bits.

struct Weights {
  float kd, ce, temperature, floor;
};

// `s (V,)` and `t (V,)` → sums (divergence, cross-entropy), and ∂total/∂s over s; scratch `(3, V)`.
template <typename S, typename T, bool kTeacher, bool kTempered>
void row(S* __restrict s, const T* __restrict t, int64_t target, int64_t vocab, Weights w, bool with_grad,
         float* __restrict scratch, double* sums) {
  float* __restrict plain = scratch;               // e^z
  float* __restrict warm = scratch + vocab;        // e^(z/τ), where τ ≠ 1
  float* __restrict wanted = scratch + 2 * vocab;  // the teacher's e^(z/τ)
  const float floor = w.floor, cold = 1.0f / w.temperature;

  float top = -INFINITY, t_top = -INFINITY;
#pragma omp simd reduction(max : top, t_top)
  for (int64_t i = 0; i < vocab; ++i) {
    top = larger(top, larger(load(s[i]), floor));
    if constexpr (kTeacher) t_top = larger(t_top, larger(load(t[i]), floor));
  }

  double z = 0, z_warm = 0, z_wanted = 0, dot = 0;
  for (int64_t start = 0; start < vocab; start += 1024) {  // fp32 sums stay short
    const int64_t end = start + 1024 < vocab ? start + 1024 : vocab;
    float part = 0, part_warm = 0, part_wanted = 0, part_dot = 0;
#pragma omp simd reduction(+ : part, part_warm, part_wanted, part_dot)
    for (int64_t i = start; i < end; ++i) {
      const float x = larger(load(s[i]), floor) - top;
      plain[i] = exponential(x);
      part += plain[i];
      if constexpr (kTeacher) {
        const float y = larger(load(t[i]), floor) - t_top;
        wanted[i] = exponential(kTempered ? y * cold : y);
        part_wanted += wanted[i];
        part_dot += wanted[i] * (y - x);
      }
      if constexpr (kTeacher && kTempered) {
        warm[i] = exponential(x * cold);
        part_warm += warm[i];
      }
    }
    z += part, z_warm += part_warm, z_wanted += part_wanted, dot += part_dot;
  }
  sums[0] = kTeacher ? cold * dot / z_wanted + std::log(kTempered ? z_warm : z) - std::log(z_wanted) : 0;
  sums[1] = std::log(z) - (larger(load(s[target]), floor) - top);
  if (!with_grad) return;

  // ∂(kd·τ²·KL)/∂z = kd·τ·(Q_τ − P_τ); ∂(ce·CE)/∂z = ce·(Q − onehot). At τ = 1 one softmax serves both.
  const float kd = kTeacher ? w.kd * w.temperature : 0;
  const float a = static_cast<float>((kTempered ? w.ce : w.ce + kd) / z);
  const float b = kTempered ? static_cast<float>(kd / z_warm) : 0;
  const float c = kTeacher ? static_cast<float>(kd / z_wanted) : 0;
  const auto slope = [=](int64_t i) {
    float g = a * plain[i];
    if constexpr (kTeacher && kTempered) g += b * warm[i];
    if constexpr (kTeacher) g -= c * wanted[i];
    return g;
  };
#pragma omp simd
  for (int64_t i = 0; i < vocab; ++i) store(s[i], slope(i));
  store(s[target], slope(target) - w.ce);
}

template <typename S, typename T>
void sweep(S* student, const T* teacher, const int64_t* targets, double* sums, float* scratch, int64_t count,
          int64_t vocab, int64_t s_stride, int64_t t_stride, Weights w, bool with_grad, int threads) {
  const auto work = !teacher             ? row<S, T, false, false>
                    : w.temperature != 1 ? row<S, T, true, true>
                                         : row<S, T, true, false>;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t thread = 0; thread < threads; ++thread) {
    for (int64_t i = thread * count / threads; i < (thread + 1) * count / threads; ++i) {
      work(student + i * s_stride, teacher ? teacher + i * t_stride : nullptr, targets[i], vocab, w, with_grad,
           scratch + thread * 3 * vocab, sums + 2 * i);
    }
  }
}

// --- ∂head is made as (D, V) and handed over as (V, D), scaled ---------------------------------------------------------

// `source (D, V)` → `target (V, D)`, tile by tile through a buffer in the nearest cache.
template <typename S, typename T>
void transpose(const S* source, T* target, int64_t depth, int64_t vocab, float scale, int threads) {
  constexpr int64_t kRows = 32, kColumns = 256;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t column = 0; column < vocab; column += kColumns) {
    const int64_t width = vocab - column < kColumns ? vocab - column : kColumns;
    T tile[kRows][kColumns];
    for (int64_t row = 0; row < depth; row += kRows) {
      const int64_t height = depth - row < kRows ? depth - row : kRows;
      for (int64_t i = 0; i < height; ++i) {
        const S* from = source + (row + i) * vocab + column;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) store(tile[i][j], scale * load(from[j]));
      }
      for (int64_t j = 0; j < width; ++j) {
        T* to = target + (column + j) * depth + row;
        for (int64_t i = 0; i < height; ++i) to[i] = tile[i][j];
      }
    }
  }
}

}  // namespace

// `student (R, ≥V)` and `teacher (R, ≥V)` or null, with these strides; `targets (R,)`, `sums (R, 2)`,
// `scratch (threads, 3, V)`. `source (D, V)`, `target (V, D)`.
#define FUNCTIONS(S_name, T_name, S, T)                                                                              \
  extern "C" void sweep_##S_name##_##T_name(                                                                         \
      void* student, const void* teacher, const int64_t* targets, double* sums, float* scratch, int64_t count,       \
      int64_t vocab, int64_t s_stride, int64_t t_stride, float kd, float ce, float temperature, float floor,         \
      int with_grad, int threads) {                                                                                  \
    sweep(static_cast<S*>(student), static_cast<const T*>(teacher), targets, sums, scratch, count, vocab, s_stride,  \
          t_stride, Weights{kd, ce, temperature, floor}, with_grad != 0, threads);                                   \
  }                                                                                                                  \
  extern "C" void transpose_##S_name##_##T_name(const void* source, void* target, int64_t depth, int64_t vocab,      \
                                                float scale, int threads) {                                          \
    transpose(static_cast<const S*>(source), static_cast<T*>(target), depth, vocab, scale, threads);                 \
  }
FUNCTIONS(bf16, bf16, BFloat16, BFloat16)
FUNCTIONS(bf16, fp32, BFloat16, float)
FUNCTIONS(fp32, bf16, float, BFloat16)
FUNCTIONS(fp32, fp32, float, float)
