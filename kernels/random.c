/*
 * Philox 4×32-10 (Salmon et al. 2011). Element i takes word i mod 4 of the block with counter (⌊i/4⌋, counter, 0, 0) under
 * the key (key0, key1). A word x gives the uniform u = (x >>> 8)·2⁻²⁴.
 *
 * Normals: words (x0, x1) of a pair give u₁ = ((x0 >>> 8) + 1)·2⁻²⁴, u₂ = (x1 >>> 8)·2⁻²⁴ and
 * z0 = √(−2 log u₁)·cos 2πu₂, z1 = √(−2 log u₁)·sin 2πu₂, in f64 by + − × / √ alone, in the order written here, so that
 * every build and the TypeScript mirror agree to the bit:
 *   log: u₁ = m·2ᵉ, m in [√½, √2), s = (m − 1)/(m + 1), log m = 2(s + s³/3 + s⁵/5 + … + s¹⁹/19)
 *   sin, cos: octant by integers, then Taylor to the terms a¹⁷/17! and a¹⁶/16! for a in [0, π/4]
 */
#include "strut.h"

enum { CHUNK = 1 << 13, BLOCKS = 16 };

/* Words or results of 16 blocks, word by word, so that the compiler makes vectors of them. */
typedef uint32_t Words[4][BLOCKS];
typedef double Numbers[4][BLOCKS];

typedef struct {
  int32_t n;
  uint32_t key0, key1, counter;
  double low, range;
  float *out, *x;
} Job;

INLINE void philox(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1, uint32_t *x0, uint32_t *x1, uint32_t *x2, uint32_t *x3) {
  uint32_t c2 = 0, c3 = 0;
  _Pragma("GCC unroll 10") for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
    c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)b;
    c3 = (uint32_t)a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  *x0 = c0, *x1 = c1, *x2 = c2, *x3 = c3;
}

INLINE double log_of_uniform(uint32_t j) {
  double value = (double)(int32_t)j;
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  int32_t exponent = (int32_t)(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
  double m;
  memcpy(&m, &bits, sizeof m);
  int32_t high = m > 1.4142135623730951;
  m = high ? m * 0.5 : m;
  double e = (double)(exponent + high - 24);
  double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 1.0 / 19.0;
  p = p * z + 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  double logM = 2.0 * s + 2.0 * s * (z * p);
  return e * 0.6931471805599453 + logM;
}

INLINE void cos_sin_of_turn(uint32_t j, double *cosine, double *sine) {
  uint32_t octant = j >> 21, rest = j & 0x1fffff;
  rest = octant & 1 ? 0x200000 - rest : rest;
  double a = (double)(int32_t)rest * (6.283185307179586 / 16777216.0), z = a * a;
  double s = 1.0 / 355687428096000.0;
  s = s * z - 1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  s = a + a * (z * s);
  double c = 1.0 / 20922789888000.0;
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 0.5;
  c = 1.0 + z * c;
  int swapped = (octant + 1) & 2;
  double x = swapped ? s : c, y = swapped ? c : s;
  *cosine = (octant + 2) & 4 ? -x : x;
  *sine = octant & 4 ? -y : y;
}

INLINE void normal_pair(uint32_t x0, uint32_t x1, double *z0, double *z1) {
  double r = sqrt(-2.0 * log_of_uniform((x0 >> 8) + 1)), c, s;
  cos_sin_of_turn(x1 >> 8, &c, &s);
  *z0 = r * c;
  *z1 = r * s;
}

static void draw(const Job *job, int32_t at, Words x) {
  for (uint32_t b = 0; b < BLOCKS; b++)
    philox(job->key0, job->key1, (uint32_t)at / 4 + b, job->counter, &x[0][b], &x[1][b], &x[2][b], &x[3][b]);
}

static void uniforms(Words x, Numbers u) {
  for (int word = 0; word < 4; word++)
    for (int b = 0; b < BLOCKS; b++) u[word][b] = (double)(int32_t)(x[word][b] >> 8) * 0x1p-24;
}

static void normals(Words x, Numbers z) {
  for (int pair = 0; pair < 4; pair += 2)
    for (int b = 0; b < BLOCKS; b++) normal_pair(x[pair][b], x[pair + 1][b], &z[pair][b], &z[pair + 1][b]);
}

/* out = low + range·number, rounded once to f32. */
static void spread(const Job *job, int32_t at, int32_t end, Numbers from) {
  float y[BLOCKS][4];
  for (int b = 0; b < BLOCKS; b++)
    for (int word = 0; word < 4; word++) y[b][word] = (float)(job->low + job->range * from[word][b]);
  memcpy(job->out + at, y, (size_t)least(4 * BLOCKS, end - at) * sizeof(float));
}

#define FOR_GROUPS(at, task, job) for (int32_t at = task * CHUNK, end = at + least(CHUNK, job->n - at); at < end; at += 4 * BLOCKS)

static void uniform_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  Words x;
  Numbers u;
  FOR_GROUPS(at, task, job) {
    draw(job, at, x);
    uniforms(x, u);
    spread(job, at, end, u);
  }
}

/* out n | low high | key0 key1 counter */
void K(random_uniform)(float *out, int32_t n, double low, double high, int32_t key0, int32_t key1, int32_t counter) {
  Job job = {.n = n, .out = out, .low = low, .range = high - low, .key0 = (uint32_t)key0, .key1 = (uint32_t)key1, .counter = (uint32_t)counter};
  parallel(chunks(n, CHUNK), 2.0 * n, uniform_part, &job);
}

static void normal_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  Words x;
  Numbers z;
  FOR_GROUPS(at, task, job) {
    draw(job, at, x);
    normals(x, z);
    spread(job, at, end, z);
  }
}

/* out n | mean std | key0 key1 counter */
void K(random_normal)(float *out, int32_t n, double mean, double std, int32_t key0, int32_t key1, int32_t counter) {
  Job job = {.n = n, .out = out, .low = mean, .range = std, .key0 = (uint32_t)key0, .key1 = (uint32_t)key1, .counter = (uint32_t)counter};
  parallel(chunks(n, CHUNK), 6.0 * n, normal_part, &job);
}

static void dropout_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  Words x;
  Numbers u;
  FOR_GROUPS(at, task, job) {
    draw(job, at, x);
    uniforms(x, u);
    float y[BLOCKS][4] = {0};
    size_t bytes = (size_t)least(4 * BLOCKS, end - at) * sizeof(float);
    memcpy(y, job->x + at, bytes);
    for (int b = 0; b < BLOCKS; b++)
      for (int word = 0; word < 4; word++) y[b][word] = u[word][b] >= job->low ? (float)(y[b][word] / job->range) : 0.f;
    memcpy(job->out + at, y, bytes);
  }
}

/* y x n | p key0 key1 counter */
void K(dropout)(float *y, float *x, int32_t n, double p, int32_t key0, int32_t key1, int32_t counter) {
  Job job = {.n = n, .out = y, .x = x, .low = p, .range = 1 - p, .key0 = (uint32_t)key0, .key1 = (uint32_t)key1, .counter = (uint32_t)counter};
  parallel(chunks(n, CHUNK), 3.0 * n, dropout_part, &job);
}

static void round_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  Words x;
  FOR_GROUPS(at, task, job) {
    draw(job, at, x);
    uint32_t y[BLOCKS][4] = {0};
    size_t bytes = (size_t)least(4 * BLOCKS, end - at) * sizeof(float);
    memcpy(y, job->x + at, bytes);
    for (int b = 0; b < BLOCKS; b++)
      for (int word = 0; word < 4; word++) {
        uint32_t finite = (y[b][word] & 0x7f800000) != 0x7f800000;
        y[b][word] = finite ? (y[b][word] + (x[word][b] >> 16)) & 0xffff0000 : y[b][word];
      }
    memcpy(job->out + at, y, bytes);
  }
}

/* y x n | key0 key1 counter */
void K(random_round)(float *y, float *x, int32_t n, int32_t key0, int32_t key1, int32_t counter) {
  Job job = {.n = n, .out = y, .x = x, .key0 = (uint32_t)key0, .key1 = (uint32_t)key1, .counter = (uint32_t)counter};
  parallel(chunks(n, CHUNK), 2.0 * n, round_part, &job);
}
