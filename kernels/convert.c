#include "vector.h"

enum { CHUNK = 1 << 15 };

typedef struct {
  int32_t n;
  float *full;
  uint16_t *half;
} Job;

static void run(float *full, uint16_t *half, int32_t n, Body *body) {
  Job job = {n, full, half};
  parallel(chunks(n, CHUNK), 0.3 * n, body, &job);
}

typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vs __attribute__((vector_size(W * 2)));

INLINE vu choose(vi mask, vu yes, vu no) { return ((vu)mask & yes) | (~(vu)mask & no); }

INLINE vu to_bf16(vu bits) {
  vu rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return choose((vi)((bits & 0x7fffffff) > 0x7f800000), bits >> 16 | 0x40, rounded);
}

INLINE vu from_bf16(vu half) { return half << 16; }

/* Adding a power of two that leaves exactly the wanted bits makes the float unit round a subnormal half to even. */
INLINE vu to_f16(vu bits) {
  vu sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  vu normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  vu subnormal = (vu)((vf)magnitude + 0.5f) - 0x3f000000;
  vu half = choose((vi)(magnitude < 113u << 23), subnormal, choose((vi)(magnitude >= 143u << 23), (vu){0} + 0x7c00, normal));
  return sign | choose((vi)(magnitude > 0x7f800000), 0x7e00 | (magnitude >> 13 & 0x3ff), half);
}

INLINE vu from_f16(vu half) {
  vu sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
  vu normal = (magnitude << 13) + (112u << 23);
  vu quiet = (vu)(magnitude > 0x7c00) & 0x400000, special = magnitude << 13 | 0x7f800000 | quiet;
  vu subnormal = (vu)(__builtin_convertvector((vi)magnitude, vf) * 0x1p-24f);
  return sign | choose((vi)(magnitude >= 0x7c00), special, choose((vi)(magnitude < 0x400), subnormal, normal));
}

INLINE void narrow(uint16_t *y, const float *x, int32_t lanes, vu f(vu)) {
  vs half = __builtin_convertvector(f((vu)load_part(x, lanes)), vs);
  memcpy(y, &half, (size_t)lanes * sizeof *y);
}

INLINE void widen(float *y, const uint16_t *x, int32_t lanes, vu f(vu)) {
  vs half = {0};
  memcpy(&half, x, (size_t)lanes * sizeof *x);
  store_part(y, (vf)f(__builtin_convertvector(half, vu)), lanes);
}

#define CONVERSION(name, way, to, from)                                                      \
  static void name##_part(int32_t task, int32_t slot, const void *data) {                    \
    (void)slot;                                                                              \
    const Job *job = data;                                                                   \
    int32_t i = task * CHUNK, end = i + least(CHUNK, job->n - i);                            \
    for (; i + W <= end; i += W) way(job->to + i, job->from + i, W, name);                   \
    if (i < end) way(job->to + i, job->from + i, end - i, name);                             \
  }
CONVERSION(to_bf16, narrow, half, full)
CONVERSION(from_bf16, widen, full, half)
CONVERSION(to_f16, narrow, half, full)
CONVERSION(from_f16, widen, full, half)

void K(f32_to_bf16)(uint16_t *y, float *x, int32_t n) { run(x, y, n, to_bf16_part); }
void K(bf16_to_f32)(float *y, uint16_t *x, int32_t n) { run(y, x, n, from_bf16_part); }
void K(f32_to_f16)(uint16_t *y, float *x, int32_t n) { run(x, y, n, to_f16_part); }
void K(f16_to_f32)(float *y, uint16_t *x, int32_t n) { run(y, x, n, from_f16_part); }
