#include "vector.h"

enum { CHUNK = 1 << 14, TILE = 16 };

typedef struct {
  int32_t op, n[4], a[4], b[4], total;
  float *out, *x, *y;
} Job;

/* Joins neighbouring axes that a single stride walks, so that the last axis is as long as it can be. */
static void join_axes(Job *job) {
  int32_t last = 3;
  for (int32_t axis = 2; axis >= 0; axis--) {
    int32_t n = job->n[axis];
    int fits = job->n[last] == 1 || (job->a[axis] == job->a[last] * job->n[last] && job->b[axis] == job->b[last] * job->n[last]);
    if (n == 1) continue;
    if (fits) {
      if (job->n[last] == 1) job->a[last] = job->a[axis], job->b[last] = job->b[axis];
      job->n[last] *= n;
    } else {
      last--;
      job->n[last] = n, job->a[last] = job->a[axis], job->b[last] = job->b[axis];
    }
  }
  for (int32_t axis = 0; axis < last; axis++) job->n[axis] = 1, job->a[axis] = 0, job->b[axis] = 0;
}

INLINE vf op_add(vf a, vf b) { return a + b; }
INLINE vf op_sub(vf a, vf b) { return a - b; }
INLINE vf op_mul(vf a, vf b) { return a * b; }
INLINE vf op_div(vf a, vf b) { return a / b; }
INLINE vf op_maximum(vf a, vf b) { return pick((a > b) | (a != a), a, b); }
INLINE vf op_minimum(vf a, vf b) { return pick((a < b) | (a != a), a, b); }
INLINE vf op_greater(vf a, vf b) { return pick(a > b, splat(1.f), splat(0.f)); }
INLINE vf op_equal(vf a, vf b) { return pick(a == b, splat(1.f), splat(0.f)); }

INLINE vf gather_part(const float *p, int32_t stride, int32_t lanes) {
  vf v = {0};
  for (int32_t i = 0; i < lanes; i++) v[i] = p[i * (ptrdiff_t)stride];
  return v;
}

/* One row: each side runs along memory, stands still, or jumps. */
INLINE void row(float *out, const float *a, int32_t aStep, const float *b, int32_t bStep, int32_t n, vf f(vf, vf)) {
  int32_t i = 0;
  if (aStep == 1 && bStep == 1) {
    map2(out, a, b, n, f);
  } else if (aStep == 1 && bStep == 0) {
    vf still = splat(*b);
    for (; i + W <= n; i += W) store(out + i, f(load(a + i), still));
    if (i < n) store_part(out + i, f(load_part(a + i, n - i), still), n - i);
  } else if (aStep == 0 && bStep == 1) {
    vf still = splat(*a);
    for (; i + W <= n; i += W) store(out + i, f(still, load(b + i)));
    if (i < n) store_part(out + i, f(still, load_part(b + i, n - i)), n - i);
  } else {
    for (; i < n; i += W) {
      int32_t lanes = least(W, n - i);
      vf x = gather_part(a + i * (ptrdiff_t)aStep, aStep, lanes), y = gather_part(b + i * (ptrdiff_t)bStep, bStep, lanes);
      store_part(out + i, f(x, y), lanes);
    }
  }
}

/* Where element `at` of the output comes from, and how many elements of its row lie before `end`. */
static int32_t seek(const Job *job, int32_t at, int32_t end, const float **x, const float **y) {
  int32_t col = at % job->n[3], r = at / job->n[3], i2 = r % job->n[2];
  r /= job->n[2];
  ptrdiff_t i[4] = {r / job->n[1], r % job->n[1], i2, col}, a = 0, b = 0;
  for (int axis = 0; axis < 4; axis++) a += i[axis] * job->a[axis], b += i[axis] * job->b[axis];
  *x = job->x + a;
  if (y) *y = job->y + b;
  return least(job->n[3] - col, end - at);
}

INLINE void walk(const Job *job, int32_t task, vf f(vf, vf)) {
  const float *x, *y;
  for (int32_t at = task * CHUNK, end = at + least(CHUNK, job->total - at), n; at < end; at += n) {
    n = seek(job, at, end, &x, &y);
    row(job->out + at, x, job->a[3], y, job->b[3], n, f);
  }
}

static void binary_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  switch (job->op) {
    case 0: walk(job, task, op_add); break;
    case 1: walk(job, task, op_sub); break;
    case 2: walk(job, task, op_mul); break;
    case 3: walk(job, task, op_div); break;
    case 4: walk(job, task, op_maximum); break;
    case 5: walk(job, task, op_minimum); break;
    case 6: walk(job, task, op_greater); break;
    case 7: walk(job, task, op_equal); break;
  }
}

void K(binary)(int32_t op, float *out, float *a, float *b, int32_t n0, int32_t n1, int32_t n2, int32_t n3, int32_t a0, int32_t a1,
               int32_t a2, int32_t a3, int32_t b0, int32_t b1, int32_t b2, int32_t b3) {
  Job job = {.op = op, .n = {n0, n1, n2, n3}, .a = {a0, a1, a2, a3}, .b = {b0, b1, b2, b3}, .out = out, .x = a, .y = b};
  job.total = n0 * n1 * n2 * n3;
  if (!job.total) return;
  join_axes(&job);
  parallel(chunks(job.total, CHUNK), 0.3 * job.total, binary_part, &job);
}

static void copy_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  const float *x;
  for (int32_t at = task * CHUNK, end = at + least(CHUNK, job->total - at), n; at < end; at += n) {
    n = seek(job, at, end, &x, NULL);
    ptrdiff_t step = job->a[3];
    if (step == 1) memcpy(job->out + at, x, (size_t)n * sizeof(float));
    else
      for (int32_t i = 0; i < n; i++) job->out[at + i] = x[i * step];
  }
}

/* Transposition (axis 2 runs along memory): tiles, so that both sides use whole cache lines. A task is TILE rows of out. */
static void transpose_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t rows = job->n[2], cols = job->n[3], bands = chunks(rows, TILE);
  int32_t from = task % bands * TILE, matrix = task / bands, to = least(rows, from + TILE);
  float *out = job->out + (ptrdiff_t)matrix * rows * cols;
  const float *x = job->x + (ptrdiff_t)(matrix / job->n[1]) * job->a[0] + (ptrdiff_t)(matrix % job->n[1]) * job->a[1];
  ptrdiff_t step = job->a[3];
  for (int32_t j0 = 0; j0 < cols; j0 += TILE) {
    int32_t j1 = least(cols, j0 + TILE);
    for (int32_t i = from; i < to; i++)
      for (int32_t j = j0; j < j1; j++) out[(ptrdiff_t)i * cols + j] = x[i + j * step];
  }
}

void K(copy)(float *out, float *x, int32_t n0, int32_t n1, int32_t n2, int32_t n3, int32_t s0, int32_t s1, int32_t s2, int32_t s3) {
  Job job = {.n = {n0, n1, n2, n3}, .a = {s0, s1, s2, s3}, .b = {s0, s1, s2, s3}, .out = out, .x = x};
  job.total = n0 * n1 * n2 * n3;
  if (!job.total) return;
  join_axes(&job);
  if (job.a[2] == 1 && job.a[3] != 1 && job.n[2] > 1)
    parallel(job.n[0] * job.n[1] * chunks(job.n[2], TILE), 0.5 * job.total, transpose_part, &job);
  else parallel(chunks(job.total, CHUNK), 0.5 * job.total, copy_part, &job);
}
