#ifndef STRUT_VECTOR_H
#define STRUT_VECTOR_H

#include "strut.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

/* W floats fill a register; a double vector holds half as many. */
#if defined(__AVX512F__)
enum { W = 16 };
#elif defined(__AVX2__)
enum { W = 8 };
#else
enum { W = 4 };
#endif
enum { H = W / 2 };

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vh __attribute__((vector_size(H * 4)));
typedef double vd __attribute__((vector_size(H * 8)));

typedef float vf_any __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef float vh_any __attribute__((vector_size(H * 4), aligned(4), may_alias));
typedef double vd_any __attribute__((vector_size(H * 8), aligned(8), may_alias));

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf v) { *(vf_any *)p = v; }
INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf load_part(const float *p, int32_t n) {
  vf v = {0};
  memcpy(&v, p, (size_t)n * sizeof(float));
  return v;
}
INLINE void store_part(float *p, vf v, int32_t n) { memcpy(p, &v, (size_t)n * sizeof(float)); }

INLINE vf pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf vabs(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* a > b ? a : b, so b where a is NaN. */
INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return pick(a > b, a, b);
#endif
}

INLINE vf vsqrt(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < W; i++) x[i] = sqrtf(x[i]);
  return x;
#endif
}

/* a·b + c, fused where the processor can. */
INLINE vf vfma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

INLINE vd low_half(vf x) {
  vh half;
  memcpy(&half, &x, sizeof half);
  return __builtin_convertvector(half, vd);
}
INLINE vd high_half(vf x) {
  vh half;
  memcpy(&half, (const float *)&x + H, sizeof half);
  return __builtin_convertvector(half, vd);
}

/* Sums of floats are kept in f64, in a fixed order of lanes. */
typedef struct {
  vd low, high;
} Sum;
INLINE void sum_add(Sum *s, vf x) {
  s->low += low_half(x);
  s->high += high_half(x);
}
INLINE double sum_total(const Sum *s) {
  vd both = s->low + s->high;
  double total = 0;
  for (int i = 0; i < H; i++) total += both[i];
  return total;
}

/* The largest of `top` and n floats; NaN counts for nothing. */
INLINE float largest(const float *x, int32_t n, float top) {
  vf best[4] = {splat(top), splat(top), splat(top), splat(top)};
  int32_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int u = 0; u < 4; u++) best[u] = vmax(load(x + i + u * W), best[u]);
  for (; i + W <= n; i += W) best[0] = vmax(load(x + i), best[0]);
  if (i) {
    vf both = vmax(vmax(best[0], best[1]), vmax(best[2], best[3]));
    for (int lane = 0; lane < W; lane++) top = both[lane] > top ? both[lane] : top;
  }
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

/* y = f(x) and y = f(x, z) over n floats; f is inlined. */
INLINE void map1(float *y, const float *x, int32_t n, vf f(vf)) {
  int32_t i = 0;
  for (; i + W <= n; i += W) store(y + i, f(load(x + i)));
  if (i < n) store_part(y + i, f(load_part(x + i, n - i)), n - i);
}
INLINE void map2(float *y, const float *x, const float *z, int32_t n, vf f(vf, vf)) {
  int32_t i = 0;
  for (; i + W <= n; i += W) store(y + i, f(load(x + i), load(z + i)));
  if (i < n) store_part(y + i, f(load_part(x + i, n - i), load_part(z + i, n - i)), n - i);
}

#endif
