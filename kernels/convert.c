#include "vector.h"

enum { CHUNK = 1 << 15 };

typedef struct {
  int32_t n;
  float *wide;
  uint16_t *narrow;
} Job;

static void run(float *wide, uint16_t *narrow, int32_t n, Body *body) {
  Job job = {n, wide, narrow};
  parallel(chunks(n, CHUNK), 0.3 * n, body, &job);
}

INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
INLINE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE uint16_t to_bf16(float x) {
  uint32_t bits = bits_of(x);
  uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
}

/* Adding a power of two that leaves exactly the wanted bits makes the float unit round a subnormal half to even. */
INLINE uint16_t to_f16(float x) {
  uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  uint32_t nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
  uint32_t half = magnitude < 113u << 23 ? subnormal : magnitude >= 143u << 23 ? 0x7c00 : normal;
  return (uint16_t)(sign | (magnitude > 0x7f800000 ? nan : half));
}

INLINE float from_f16(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
  uint32_t normal = (magnitude << 13) + (112u << 23);
  uint32_t special = magnitude << 13 | 0x7f800000 | (magnitude > 0x7c00 ? 0x400000 : 0);
  float subnormal = (float)(int32_t)magnitude * 0x1p-24f;
  uint32_t bits = magnitude >= 0x7c00 ? special : magnitude < 0x400 ? bits_of(subnormal) : normal;
  return float_of(sign | bits);
}

#define FOR_PART(i, task, job) for (int32_t i = task * CHUNK, end_ = i + least(CHUNK, job->n - i); i < end_; i++)

static void f32_to_bf16_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  FOR_PART(i, task, job) job->narrow[i] = to_bf16(job->wide[i]);
}
static void bf16_to_f32_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  FOR_PART(i, task, job) job->wide[i] = float_of((uint32_t)job->narrow[i] << 16);
}
static void f32_to_f16_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  FOR_PART(i, task, job) job->narrow[i] = to_f16(job->wide[i]);
}
static void f16_to_f32_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  FOR_PART(i, task, job) job->wide[i] = from_f16(job->narrow[i]);
}

void K(f32_to_bf16)(uint16_t *y, float *x, int32_t n) { run(x, y, n, f32_to_bf16_part); }
void K(bf16_to_f32)(float *y, uint16_t *x, int32_t n) { run(y, x, n, bf16_to_f32_part); }
void K(f32_to_f16)(uint16_t *y, float *x, int32_t n) { run(x, y, n, f32_to_f16_part); }
void K(f16_to_f32)(float *y, uint16_t *x, int32_t n) { run(y, x, n, f16_to_f32_part); }
