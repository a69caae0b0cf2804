#include "vmath.h"

enum { ROWS = 8 };
static const double NS_EXP = 0.8;

typedef struct {
  int32_t rows, cols;
  float *out, *a, *b, *scale;
  int32_t *targets;
} Job;

#define FOR_ROWS(r, task, job) for (int32_t r = task * ROWS; r < least(job->rows, (task + 1) * ROWS); r++)

/* Σ exp(x − top); the exponentials are kept in y unless it is null. */
INLINE double sum_exp(float *y, const float *x, float top, int32_t n) {
  Sum sum = {0};
  int32_t i = 0;
  for (; i + W <= n; i += W) {
    vf e = vexp(load(x + i) - top);
    if (y) store(y + i, e);
    sum_add(&sum, e);
  }
  if (i == n) return sum_total(&sum);
  float rest[W];
  store(rest, vexp(load_part(x + i, n - i) - top));
  if (y) memcpy(y + i, rest, (size_t)(n - i) * sizeof(float));
  sum_add(&sum, load_part(rest, n - i));
  return sum_total(&sum);
}

static void softmax_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = job->cols;
  FOR_ROWS(r, task, job) {
    float *y = job->out + (ptrdiff_t)r * n;
    const float *x = job->a + (ptrdiff_t)r * n;
    float scale = (float)(1.0 / sum_exp(y, x, largest(x, n, -INFINITY), n));
    int32_t i = 0;
    for (; i + W <= n; i += W) store(y + i, load(y + i) * scale);
    for (; i < n; i++) y[i] *= scale;
  }
}

void K(softmax)(float *y, float *x, int32_t rows, int32_t cols) {
  Job job = {.rows = rows, .cols = cols, .out = y, .a = x};
  parallel(chunks(rows, ROWS), NS_EXP * rows * cols, softmax_rows, &job);
}

static void softmax_backward_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = job->cols;
  FOR_ROWS(r, task, job) {
    float *dx = job->out + (ptrdiff_t)r * n;
    const float *g = job->a + (ptrdiff_t)r * n, *y = job->b + (ptrdiff_t)r * n;
    Sum sum = {0};
    int32_t i = 0;
    for (; i + W <= n; i += W) sum_add(&sum, load(g + i) * load(y + i));
    if (i < n) sum_add(&sum, load_part(g + i, n - i) * load_part(y + i, n - i));
    float dot = (float)sum_total(&sum);
    for (i = 0; i + W <= n; i += W) store(dx + i, load(y + i) * (load(g + i) - dot));
    for (; i < n; i++) dx[i] = y[i] * (g[i] - dot);
  }
}

/* dx | y g */
void K(softmax_backward)(float *dx, float *y, float *g, int32_t rows, int32_t cols) {
  Job job = {.rows = rows, .cols = cols, .out = dx, .a = g, .b = y};
  parallel(chunks(rows, ROWS), 0.3 * rows * cols, softmax_backward_rows, &job);
}

static void loss_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  FOR_ROWS(r, task, job) {
    const float *x = job->a + (ptrdiff_t)r * job->cols;
    double top = largest(x, job->cols, -INFINITY), logSum = log(sum_exp(NULL, x, (float)top, job->cols));
    int32_t target = job->targets[r];
    job->out[r] = target < 0 ? 0.f : (float)(logSum + (top - x[target]));
    job->b[r] = (float)(top + logSum);
  }
}

/* losses lse | logits targets rows cols */
void K(cross_entropy)(float *losses, float *lse, float *logits, int32_t *targets, int32_t rows, int32_t cols) {
  Job job = {.rows = rows, .cols = cols, .out = losses, .a = logits, .b = lse, .targets = targets};
  parallel(chunks(rows, ROWS), NS_EXP * rows * cols, loss_rows, &job);
}

static void loss_backward_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = job->cols;
  FOR_ROWS(r, task, job) {
    float *dx = job->out + (ptrdiff_t)r * n;
    const float *x = job->a + (ptrdiff_t)r * n;
    float lse = job->b[r], scale = job->scale[r];
    int32_t target = job->targets[r], i = 0;
    if (target < 0) {
      memset(dx, 0, (size_t)n * sizeof(float));
      continue;
    }
    float hit = scale * (vexp(splat(x[target] - lse))[0] - 1.f);
    for (; i + W <= n; i += W) store(dx + i, scale * vexp(load(x + i) - lse));
    if (i < n) store_part(dx + i, scale * vexp(load_part(x + i, n - i) - lse), n - i);
    dx[target] = hit;
  }
}

/* dlogits | logits lse targets scale | rows cols */
void K(cross_entropy_backward)(float *dlogits, float *logits, float *lse, int32_t *targets, float *scale, int32_t rows, int32_t cols) {
  Job job = {.rows = rows, .cols = cols, .out = dlogits, .a = logits, .b = lse, .scale = scale, .targets = targets};
  parallel(chunks(rows, ROWS), NS_EXP * rows * cols, loss_backward_rows, &job);
}
