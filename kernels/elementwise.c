#include "vmath.h"

enum { CHUNK = 1 << 14 };
static const double NS_SIMPLE = 0.3, NS_MATH = 1.2; /* rough cost of an element */

typedef struct {
  int32_t op, n;
  float *out, *a, *b, *c, *d;
  float x, y;
} Job;

#define PART(task, job) \
  int32_t at = task * CHUNK, n = least(CHUNK, job->n - at)

static void run(Job job, Body *body, double ns) { parallel(chunks(job.n, CHUNK), ns * job.n, body, &job); }

INLINE vf op_neg(vf x) { return -x; }
INLINE vf op_rsqrt(vf x) { return 1.f / vsqrt(x); }
INLINE vf op_silu(vf x) { return x * vsigmoid(x); }
INLINE vf op_gelu(vf x) {
  vf density;
  return x * normal_cdf(x, &density);
}
/* ½(1 + tanh u) = σ(2u) with u = √(2/π)·(x + 0.044715x³) */
INLINE vf gelu_gate(vf x) { return vsigmoid(1.595769122f * (x + 0.044715f * x * x * x)); }
INLINE vf op_gelu_tanh(vf x) { return x * gelu_gate(x); }
INLINE vf op_relu(vf x) { return pick(x <= 0.f, splat(0.f), x); }
INLINE vf op_sign(vf x) { return pick(x > 0.f, splat(1.f), pick(x < 0.f, splat(-1.f), x)); }
INLINE vf op_square(vf x) { return x * x; }
INLINE vf op_reciprocal(vf x) { return 1.f / x; }

static void unary_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  PART(task, job);
  float *y = job->out + at, *x = job->a + at;
  switch (job->op) {
    case 0: map1(y, x, n, op_neg); break;
    case 1: map1(y, x, n, vexp); break;
    case 2: map1(y, x, n, vlog); break;
    case 3: map1(y, x, n, vsqrt); break;
    case 4: map1(y, x, n, op_rsqrt); break;
    case 5: map1(y, x, n, vtanh); break;
    case 6: map1(y, x, n, vsigmoid); break;
    case 7: map1(y, x, n, op_silu); break;
    case 8: map1(y, x, n, op_gelu); break;
    case 9: map1(y, x, n, op_gelu_tanh); break;
    case 10: map1(y, x, n, op_relu); break;
    case 11: map1(y, x, n, vabs); break;
    case 12: map1(y, x, n, op_sign); break;
    case 13: map1(y, x, n, op_square); break;
    case 14: map1(y, x, n, op_reciprocal); break;
  }
}

void K(unary)(int32_t op, float *y, float *x, int32_t n) {
  run((Job){.op = op, .n = n, .out = y, .a = x}, unary_part, NS_MATH);
}

/* Each takes g and the one of x and y that its derivative needs. */
INLINE vf d_neg(vf g, vf x) { return (void)x, -g; }
INLINE vf d_exp(vf g, vf y) { return g * y; }
INLINE vf d_log(vf g, vf x) { return g / x; }
INLINE vf d_sqrt(vf g, vf y) { return g * 0.5f / y; }
INLINE vf d_rsqrt(vf g, vf y) { return g * -0.5f * (y * y * y); }
INLINE vf d_tanh(vf g, vf y) { return g * (1.f - y * y); }
INLINE vf d_sigmoid(vf g, vf y) { return g * y * (1.f - y); }
INLINE vf d_silu(vf g, vf x) {
  vf s = vsigmoid(x);
  return g * (s * (1.f + x * (1.f - s)));
}
INLINE vf d_gelu(vf g, vf x) {
  vf density, cdf = normal_cdf(x, &density);
  return g * (cdf + x * density);
}
INLINE vf d_gelu_tanh(vf g, vf x) {
  vf s = gelu_gate(x);
  vf c = pick(x > 64.f, splat(64.f), pick(x < -64.f, splat(-64.f), x)); /* c² must not overflow where s(1 − s) is 0 */
  return g * (s + c * s * (1.f - s) * (1.595769122f + 0.2140644488f * c * c));
}
INLINE vf d_relu(vf g, vf x) { return pick(x > 0.f, g, splat(0.f)); }
INLINE vf d_abs(vf g, vf x) { return g * op_sign(x); }
INLINE vf d_sign(vf g, vf x) { return (void)x, g * 0.f; }
INLINE vf d_square(vf g, vf x) { return g * (x + x); }
INLINE vf d_reciprocal(vf g, vf y) { return -g * y * y; }

static void unary_backward_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  PART(task, job);
  float *dx = job->out + at, *g = job->a + at, *x = job->b + at, *y = job->c + at;
  switch (job->op) {
    case 0: map2(dx, g, x, n, d_neg); break;
    case 1: map2(dx, g, y, n, d_exp); break;
    case 2: map2(dx, g, x, n, d_log); break;
    case 3: map2(dx, g, y, n, d_sqrt); break;
    case 4: map2(dx, g, y, n, d_rsqrt); break;
    case 5: map2(dx, g, y, n, d_tanh); break;
    case 6: map2(dx, g, y, n, d_sigmoid); break;
    case 7: map2(dx, g, x, n, d_silu); break;
    case 8: map2(dx, g, x, n, d_gelu); break;
    case 9: map2(dx, g, x, n, d_gelu_tanh); break;
    case 10: map2(dx, g, x, n, d_relu); break;
    case 11: map2(dx, g, x, n, d_abs); break;
    case 12: map2(dx, g, x, n, d_sign); break;
    case 13: map2(dx, g, x, n, d_square); break;
    case 14: map2(dx, g, y, n, d_reciprocal); break;
  }
}

/* op | dx | x y g */
void K(unary_backward)(int32_t op, float *dx, float *x, float *y, float *g, int32_t n) {
  run((Job){.op = op, .n = n, .out = dx, .a = g, .b = x, .c = y}, unary_backward_part, NS_MATH);
}

static void fill_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  PART(task, job);
  float *x = job->out + at;
  for (int32_t i = 0; i < n; i++) x[i] = job->x;
}

void K(fill)(float *x, double value, int32_t n) { run((Job){.n = n, .out = x, .x = (float)value}, fill_part, NS_SIMPLE); }

static void axpby_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  PART(task, job);
  float *y = job->out + at, *x = job->a + at, a = job->x, b = job->y;
  int32_t i = 0;
  if (b == 0) {
    for (; i + W <= n; i += W) store(y + i, a * load(x + i));
    for (; i < n; i++) y[i] = a * x[i];
  } else {
    for (; i + W <= n; i += W) store(y + i, a * load(x + i) + b * load(y + i));
    for (; i < n; i++) y[i] = a * x[i] + b * y[i];
  }
}

void K(axpby)(float *y, double a, float *x, double b, int32_t n) {
  run((Job){.n = n, .out = y, .a = x, .x = (float)a, .y = (float)b}, axpby_part, NS_SIMPLE);
}

INLINE vf op_swiglu(vf gate, vf up) { return op_silu(gate) * up; }

static void swiglu_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  PART(task, job);
  map2(job->out + at, job->a + at, job->b + at, n, op_swiglu);
}

void K(swiglu)(float *y, float *gate, float *up, int32_t n) {
  run((Job){.n = n, .out = y, .a = gate, .b = up}, swiglu_part, NS_MATH);
}

INLINE void swiglu_backward_step(float *dgate, float *dup, const float *g, const float *gate, const float *up, int32_t lanes) {
  vf vg = load_part(g, lanes), x = load_part(gate, lanes), u = load_part(up, lanes);
  vf s = vsigmoid(x);
  store_part(dgate, vg * u * (s * (1.f + x * (1.f - s))), lanes);
  store_part(dup, vg * (x * s), lanes);
}

static void swiglu_backward_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  PART(task, job);
  float *dgate = job->out + at, *dup = job->d + at, *g = job->a + at, *gate = job->b + at, *up = job->c + at;
  int32_t i = 0;
  for (; i + W <= n; i += W) swiglu_backward_step(dgate + i, dup + i, g + i, gate + i, up + i, W);
  if (i < n) swiglu_backward_step(dgate + i, dup + i, g + i, gate + i, up + i, n - i);
}

void K(swiglu_backward)(float *dgate, float *dup, float *g, float *gate, float *up, int32_t n) {
  run((Job){.n = n, .out = dgate, .d = dup, .a = g, .b = gate, .c = up}, swiglu_backward_part, 2 * NS_MATH);
}
