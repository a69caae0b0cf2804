/* Running sums and sums of segments, kept in f64. */
#include "vector.h"

enum { COLUMNS = 64, SEGMENTS = 16 };

typedef struct {
  int32_t outer, count, inner, reverse;
  float *out, *x;
  int32_t *offsets;
} Job;

static void scan_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t bands = chunks(job->inner, COLUMNS), from = task % bands * COLUMNS, n = least(COLUMNS, job->inner - from);
  ptrdiff_t step = job->reverse ? -(ptrdiff_t)job->inner : job->inner, first = job->reverse ? job->count - 1 : 0;
  ptrdiff_t at = ((ptrdiff_t)(task / bands) * job->count + first) * job->inner + from;
  double sum[COLUMNS] = {0};
  for (int32_t c = 0; c < job->count; c++, at += step) {
    const float *x = job->x + at;
    float *out = job->out + at;
    for (int32_t i = 0; i < n; i++) out[i] = (float)(sum[i] += x[i]);
  }
}

static void scan_row(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  const float *x = job->x + (ptrdiff_t)task * job->count;
  float *out = job->out + (ptrdiff_t)task * job->count;
  double sum = 0;
  if (job->reverse)
    for (int32_t i = job->count - 1; i >= 0; i--) out[i] = (float)(sum += x[i]);
  else
    for (int32_t i = 0; i < job->count; i++) out[i] = (float)(sum += x[i]);
}

/* out | x | outer count inner reverse */
void K(cumulative_sum)(float *out, float *x, int32_t outer, int32_t count, int32_t inner, int32_t reverse) {
  Job job = {.outer = outer, .count = count, .inner = inner, .reverse = reverse, .out = out, .x = x};
  double cost = 1.0 * outer * count * inner;
  if (inner == 1) parallel(outer, cost, scan_row, &job);
  else parallel(outer * chunks(inner, COLUMNS), cost, scan_part, &job);
}

static void segment_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t dim = job->inner, bands = chunks(dim, COLUMNS), from = task % bands * COLUMNS, n = least(COLUMNS, dim - from);
  int32_t s = task / bands * SEGMENTS;
  for (int32_t end = least(job->count, s + SEGMENTS); s < end; s++) {
    double sum[COLUMNS] = {0};
    for (int32_t r = job->offsets[s]; r < job->offsets[s + 1]; r++) {
      const float *x = job->x + (ptrdiff_t)r * dim + from;
      for (int32_t i = 0; i < n; i++) sum[i] += x[i];
    }
    for (int32_t i = 0; i < n; i++) job->out[(ptrdiff_t)s * dim + from + i] = (float)sum[i];
  }
}

/* out | x offsets | segments dim rows */
void K(segment_sum)(float *out, float *x, int32_t *offsets, int32_t segments, int32_t dim, int32_t rows) {
  Job job = {.count = segments, .inner = dim, .out = out, .x = x, .offsets = offsets};
  parallel(chunks(segments, SEGMENTS) * chunks(dim, COLUMNS), 0.5 * rows * dim, segment_part, &job);
}
