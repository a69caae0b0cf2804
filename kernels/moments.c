#include "strut.h"

enum { COLUMNS = 64 };

typedef struct {
  double *out;
  const float *x;
  int32_t rows, cols;
} Job;

static void band(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t from = task * COLUMNS, n = least(COLUMNS, job->cols - from);
  double sum[COLUMNS] = {0}, size[COLUMNS] = {0}, square[COLUMNS] = {0};
  for (int32_t r = 0; r < job->rows; r++) {
    const float *x = job->x + (ptrdiff_t)r * job->cols + from;
    for (int32_t c = 0; c < n; c++) {
      double v = x[c];
      sum[c] += v;
      size[c] += fabs(v);
      square[c] += v * v;
    }
  }
  double *out = job->out + from;
  for (int32_t c = 0; c < n; c++) {
    out[c] = sum[c];
    out[c + job->cols] = size[c];
    out[c + 2 * (ptrdiff_t)job->cols] = square[c];
  }
}

void K(column_moments)(double *out, float *x, int32_t rows, int32_t cols) {
  Job job = {out, x, rows, cols};
  parallel(chunks(cols, COLUMNS), 0.5 * rows * cols, band, &job);
}

typedef struct {
  double *y;
  const float *x;
  int32_t cols, stride, add;
} Widening;

static void widen_row(int32_t r, int32_t slot, const void *data) {
  (void)slot;
  const Widening *job = data;
  double *y = job->y + (ptrdiff_t)r * job->stride;
  const float *x = job->x + (ptrdiff_t)r * job->cols;
  if (job->add)
    for (int32_t c = 0; c < job->cols; c++) y[c] += x[c];
  else
    for (int32_t c = 0; c < job->cols; c++) y[c] = x[c];
}

void K(widen_rows)(double *y, float *x, int32_t rows, int32_t cols, int32_t stride, int32_t add) {
  Widening job = {y, x, cols, stride, add};
  parallel(rows, 0.5 * rows * cols, widen_row, &job);
}
