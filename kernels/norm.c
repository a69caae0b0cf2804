#include "vector.h"

enum { ROWS = 8, COLUMNS = 4 * W };

typedef struct {
  int32_t rows, cols, centred;
  double eps;
  float *y, *mean, *rstd, *x, *w, *b, *dx, *dw, *db, *g;
} Job;

#define FOR_ROWS(r, task, job) for (int32_t r = task * ROWS; r < least(job->rows, (task + 1) * ROWS); r++)

static double row_mean(const float *x, int32_t n) {
  Sum sum = {0};
  int32_t i = 0;
  for (; i + W <= n; i += W) sum_add(&sum, load(x + i));
  if (i < n) sum_add(&sum, load_part(x + i, n - i));
  return sum_total(&sum) / n;
}

static double row_mean_square(const float *x, double mean, int32_t n) {
  vd low = {0}, high = {0};
  int32_t i = 0;
  for (; i + W <= n; i += W) {
    vd a = low_half(load(x + i)) - mean, b = high_half(load(x + i)) - mean;
    low += a * a;
    high += b * b;
  }
  Sum sum = {low, high};
  double total = sum_total(&sum);
  for (; i < n; i++) total += (x[i] - mean) * (x[i] - mean);
  return total / n;
}

/* y = (x − mean)·rstd ⊙ w + b; rms norm has mean 0 and no b. */
static void norm_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = job->cols;
  const float *w = job->w, *b = job->b;
  FOR_ROWS(r, task, job) {
    const float *x = job->x + (ptrdiff_t)r * n;
    float *y = job->y + (ptrdiff_t)r * n;
    double exactMean = job->centred ? row_mean(x, n) : 0;
    float mean = (float)exactMean, rstd = (float)(1 / sqrt(row_mean_square(x, exactMean, n) + job->eps));
    int32_t i = 0;
    for (; i + W <= n; i += W) {
      vf v = (load(x + i) - mean) * rstd * load(w + i);
      store(y + i, b ? v + load(b + i) : v);
    }
    for (; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i] + (b ? b[i] : 0.f);
    if (job->centred) job->mean[r] = mean;
    job->rstd[r] = rstd;
  }
}

/* With h = (x − mean)·rstd and u = g ⊙ w: dx = rstd·(u − mean(u) − h·mean(u ⊙ h)); rms norm leaves out mean(u). */
static void norm_backward_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = job->cols;
  const float *w = job->w;
  FOR_ROWS(r, task, job) {
    const float *x = job->x + (ptrdiff_t)r * n, *g = job->g + (ptrdiff_t)r * n;
    float *dx = job->dx + (ptrdiff_t)r * n;
    float mean = job->centred ? job->mean[r] : 0.f, rstd = job->rstd[r];
    Sum plain = {0}, along = {0};
    int32_t i = 0;
    for (; i + W <= n; i += W) {
      vf u = load(g + i) * load(w + i), h = (load(x + i) - mean) * rstd;
      if (job->centred) sum_add(&plain, u);
      sum_add(&along, u * h);
    }
    if (i < n) {
      vf u = load_part(g + i, n - i) * load_part(w + i, n - i), h = (load_part(x + i, n - i) - mean) * rstd;
      if (job->centred) sum_add(&plain, u);
      sum_add(&along, u * h);
    }
    float p = (float)(sum_total(&plain) / n), q = (float)(sum_total(&along) / n);
    for (i = 0; i + W <= n; i += W) {
      vf u = load(g + i) * load(w + i), h = (load(x + i) - mean) * rstd;
      store(dx + i, rstd * (u - p - h * q));
    }
    for (; i < n; i++) dx[i] = rstd * (g[i] * w[i] - p - (x[i] - mean) * rstd * q);
  }
}

/* dw = Σ_rows g ⊙ h, db = Σ_rows g, for the columns of one task. */
static void weight_backward_columns(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t from = task * COLUMNS, n = least(COLUMNS, job->cols - from);
  const float *x = job->x + from, *g = job->g + from;
  Sum dw[COLUMNS / W] = {0}, db[COLUMNS / W] = {0};
  for (int32_t r = 0; r < job->rows; r++, x += job->cols, g += job->cols) {
    float mean = job->centred ? job->mean[r] : 0.f, rstd = job->rstd[r];
    for (int32_t v = 0; v * W < n; v++) {
      int32_t lanes = least(W, n - v * W);
      vf a = lanes == W ? load(g + v * W) : load_part(g + v * W, lanes);
      vf b = lanes == W ? load(x + v * W) : load_part(x + v * W, lanes);
      sum_add(&dw[v], a * ((b - mean) * rstd));
      if (job->db) sum_add(&db[v], a);
    }
  }
  for (int32_t i = 0; i < n; i++) {
    int32_t v = i / W, lane = i % W;
    if (job->dw) job->dw[from + i] = (float)(lane < H ? dw[v].low[lane] : dw[v].high[lane - H]);
    if (job->db) job->db[from + i] = (float)(lane < H ? db[v].low[lane] : db[v].high[lane - H]);
  }
}

static void norm(Job job) { parallel(chunks(job.rows, ROWS), 0.5 * job.rows * job.cols, norm_rows, &job); }

static void norm_backward(Job job) {
  double cost = 0.6 * job.rows * job.cols;
  if (job.dw || job.db) parallel(chunks(job.cols, COLUMNS), cost, weight_backward_columns, &job);
  parallel(chunks(job.rows, ROWS), cost, norm_backward_rows, &job);
}

/* y mean rstd | x w b? | rows cols eps */
void K(layer_norm)(float *y, float *mean, float *rstd, float *x, float *w, float *b, int32_t rows, int32_t cols, double eps) {
  norm((Job){.rows = rows, .cols = cols, .centred = 1, .eps = eps, .y = y, .mean = mean, .rstd = rstd, .x = x, .w = w, .b = b});
}

/* dx dw? db? | g x mean rstd w | rows cols */
void K(layer_norm_backward)(float *dx, float *dw, float *db, float *g, float *x, float *mean, float *rstd, float *w, int32_t rows,
                            int32_t cols) {
  norm_backward((Job){.rows = rows, .cols = cols, .centred = 1, .mean = mean, .rstd = rstd, .x = x, .w = w, .dx = dx, .dw = dw, .db = db, .g = g});
}

/* y rstd | x w | rows cols eps */
void K(rms_norm)(float *y, float *rstd, float *x, float *w, int32_t rows, int32_t cols, double eps) {
  norm((Job){.rows = rows, .cols = cols, .eps = eps, .y = y, .rstd = rstd, .x = x, .w = w});
}

/* dx dw? | g x rstd w | rows cols */
void K(rms_norm_backward)(float *dx, float *dw, float *g, float *x, float *rstd, float *w, int32_t rows, int32_t cols) {
  norm_backward((Job){.rows = rows, .cols = cols, .rstd = rstd, .x = x, .w = w, .dx = dx, .dw = dw, .g = g});
}
