/* Whole rows: lookup, its gradient, and rotary positions. */
#include "vector.h"

enum { ROWS = 16, COLUMNS = 4 * W };

typedef struct {
  int32_t n, dim, seq, heads, stride, inverse;
  float *out, *x, *cosines, *sines;
  int32_t *ids;
} Job;

static void gather(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  for (int32_t i = task * ROWS; i < least(job->n, (task + 1) * ROWS); i++)
    memcpy(job->out + (ptrdiff_t)i * job->dim, job->x + (ptrdiff_t)job->ids[i] * job->dim, (size_t)job->dim * sizeof(float));
}

/* out | table ids | n dim rows */
void K(gather_rows)(float *out, float *table, int32_t *ids, int32_t n, int32_t dim, int32_t rows) {
  (void)rows;
  Job job = {.n = n, .dim = dim, .out = out, .x = table, .ids = ids};
  parallel(chunks(n, ROWS), 0.3 * n * dim, gather, &job);
}

/* A task owns some columns of the table, so rows are added in order of n. */
static void scatter(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t from = task * COLUMNS, n = least(COLUMNS, job->dim - from);
  for (int32_t i = 0; i < job->n; i++) {
    float *y = job->out + (ptrdiff_t)job->ids[i] * job->dim + from;
    const float *g = job->x + (ptrdiff_t)i * job->dim + from;
    int32_t j = 0;
    for (; j + W <= n; j += W) store(y + j, load(y + j) + load(g + j));
    for (; j < n; j++) y[j] += g[j];
  }
}

/* table | g ids | n dim rows */
void K(scatter_add_rows)(float *table, float *g, int32_t *ids, int32_t n, int32_t dim, int32_t rows) {
  (void)rows;
  Job job = {.n = n, .dim = dim, .out = table, .x = g, .ids = ids};
  parallel(chunks(dim, COLUMNS), 0.5 * n * dim, scatter, &job);
}

/* Turns the pair (x[i], x[i + half]) by the angle of its position; inverse turns back. */
static void turn(float *y, const float *x, const float *c, const float *s, int32_t half, float sign) {
  int32_t i = 0;
  for (; i + W <= half; i += W) {
    vf a = load(x + i), b = load(x + half + i), cosine = load(c + i), sine = load(s + i) * sign;
    store(y + i, a * cosine - b * sine);
    store(y + half + i, b * cosine + a * sine);
  }
  for (; i < half; i++) {
    float a = x[i], b = x[half + i], sine = s[i] * sign;
    y[i] = a * c[i] - b * sine;
    y[half + i] = b * c[i] + a * sine;
  }
}

static void rotary_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t half = job->dim / 2;
  for (int32_t r = task * ROWS; r < least(job->n, (task + 1) * ROWS); r++) {
    ptrdiff_t angle = (ptrdiff_t)(r % job->seq) * half;
    for (int32_t h = 0; h < job->heads; h++)
      turn(job->out + ((ptrdiff_t)r * job->heads + h) * job->dim, job->x + (ptrdiff_t)r * job->stride + (ptrdiff_t)h * job->dim,
           job->cosines + angle, job->sines + angle, half, job->inverse ? -1.f : 1.f);
  }
}

/* y x cos sin | rows seq heads dim xRow inverse */
void K(rotary)(float *y, float *x, float *cosines, float *sines, int32_t rows, int32_t seq, int32_t heads, int32_t dim, int32_t xRow,
               int32_t inverse) {
  Job job = {.n = rows, .dim = dim, .seq = seq, .heads = heads, .stride = xRow, .inverse = inverse, .out = y, .x = x, .cosines = cosines, .sines = sines};
  parallel(chunks(rows, ROWS), 0.5 * rows * heads * dim, rotary_rows, &job);
}
