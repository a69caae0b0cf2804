#include "vector.h"

/* Long sums are made of blocks of 4096 elements, each summed in f64 and added in order. */
enum { BLOCK = 4096, GROUP = 512, COLUMNS = 4 * W };

typedef struct {
  int32_t outer, count, inner;
  float *out, *x;
  int32_t *index;
  double *partial;
} Job;

static double block_sum(const float *x, int32_t n) {
  Sum sum = {0};
  int32_t i = 0;
  for (; i + W <= n; i += W) sum_add(&sum, load(x + i));
  if (i < n) sum_add(&sum, load_part(x + i, n - i));
  return sum_total(&sum);
}

static double block_squares(const float *x, int32_t n) {
  vd low = {0}, high = {0};
  int32_t i = 0;
  for (; i < n; i += W) {
    vf v = i + W <= n ? load(x + i) : load_part(x + i, n - i);
    vd a = low_half(v), b = high_half(v);
    low += a * a;
    high += b * b;
  }
  Sum sum = {low, high};
  return sum_total(&sum);
}

static void sum_block(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  job->partial[task] = block_sum(job->x + task * BLOCK, least(BLOCK, job->count - task * BLOCK));
}

static void square_block(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  job->partial[task] = block_squares(job->x + task * BLOCK, least(BLOCK, job->count - task * BLOCK));
}

static double sum_blocks(float *x, int32_t n, Body *body) {
  double partial[GROUP], total = 0;
  for (int32_t at = 0; at < n; at += least(n - at, GROUP * BLOCK)) {
    Job job = {.x = x + at, .count = least(n - at, GROUP * BLOCK), .partial = partial};
    int32_t blocks = chunks(job.count, BLOCK);
    parallel(blocks, 0.1 * job.count, body, &job);
    for (int32_t i = 0; i < blocks; i++) total += partial[i];
  }
  return total;
}

void K(sum_squares)(double *out, float *x, int32_t n) { *out = sum_blocks(x, n, square_block); }

enum { ROWS = 16 };

static void sum_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  for (int32_t o = task * ROWS; o < least(job->outer, (task + 1) * ROWS); o++) {
    const float *x = job->x + (ptrdiff_t)o * job->count;
    double total = 0;
    for (int32_t at = 0; at < job->count; at += BLOCK) total += block_sum(x + at, least(BLOCK, job->count - at));
    job->out[o] = (float)total;
  }
}

static void sum_columns(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t bands = chunks(job->inner, COLUMNS), from = task % bands * COLUMNS, n = least(COLUMNS, job->inner - from);
  ptrdiff_t o = task / bands;
  const float *x = job->x + o * job->count * job->inner + from;
  float *out = job->out + o * job->inner + from;
  Sum sum[COLUMNS / W] = {0};
  if (n == COLUMNS) {
    for (int32_t r = 0; r < job->count; r++, x += job->inner)
      for (int32_t v = 0; v < COLUMNS / W; v++) sum_add(&sum[v], load(x + v * W));
  } else {
    for (int32_t r = 0; r < job->count; r++, x += job->inner)
      for (int32_t v = 0; v * W < n; v++) sum_add(&sum[v], load_part(x + v * W, least(W, n - v * W)));
  }
  for (int32_t i = 0; i < n; i++) {
    const Sum *s = &sum[i / W];
    int32_t lane = i % W;
    out[i] = (float)(lane < H ? s->low[lane] : s->high[lane - H]);
  }
}

void K(reduce_sum)(float *out, float *x, int32_t outer, int32_t count, int32_t inner) {
  Job job = {.outer = outer, .count = count, .inner = inner, .out = out, .x = x};
  double cost = 0.1 * outer * count * inner;
  if (inner != 1) parallel(outer * chunks(inner, COLUMNS), cost, sum_columns, &job);
  else if (outer >= 2 * ROWS || count <= BLOCK) parallel(chunks(outer, ROWS), cost, sum_rows, &job);
  else
    for (int32_t o = 0; o < outer; o++) out[o] = (float)sum_blocks(x + (ptrdiff_t)o * count, count, sum_block);
}

/* Whether x should replace best: greater, or the first NaN. */
INLINE vi beats(vf x, vf best) { return (best == best) & ((x > best) | (x != x)); }

static void max_row(float *out, int32_t *index, const float *x, int32_t n) {
  vf best = splat(-INFINITY);
  vi at = (vi){0} - 1, now;
  for (int32_t i = 0; i < W; i++) now[i] = i;
  int32_t i = 0;
  for (; i + W <= n; i += W, now += W) {
    vf v = load(x + i);
    vi better = beats(v, best) | (at < 0);
    best = pick(better, v, best);
    at = (better & now) | (~better & at);
  }
  float top = -INFINITY;
  int32_t where = -1;
  for (int32_t lane = 0; lane < W && i > 0; lane++) {
    float v = best[lane];
    int nan = v != v, nanTop = top != top;
    int better = where < 0 || (nan && !nanTop) || (!nan && !nanTop && v > top);
    int same = (nan && nanTop) || v == top;
    if (better || (same && at[lane] < where)) top = v, where = at[lane];
  }
  for (; i < n; i++)
    if (where < 0 || (top == top && (x[i] > top || x[i] != x[i]))) top = x[i], where = i;
  *out = top;
  *index = most(where, 0);
}

static void max_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  for (int32_t o = task * ROWS; o < least(job->outer, (task + 1) * ROWS); o++)
    max_row(job->out + o, job->index + o, job->x + (ptrdiff_t)o * job->count, job->count);
}

static void max_columns(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t bands = chunks(job->inner, W), from = task % bands * W, n = least(W, job->inner - from);
  ptrdiff_t o = task / bands;
  const float *x = job->x + o * job->count * job->inner + from;
  vf best = splat(-INFINITY);
  vi at = {0};
  for (int32_t r = 0; r < job->count; r++, x += job->inner) {
    vf v = n == W ? load(x) : load_part(x, n);
    vi better = beats(v, best);
    best = pick(better, v, best);
    at = (better & r) | (~better & at);
  }
  store_part(job->out + o * job->inner + from, best, n);
  memcpy(job->index + o * job->inner + from, &at, (size_t)n * sizeof(int32_t));
}

void K(reduce_max)(float *out, int32_t *index, float *x, int32_t outer, int32_t count, int32_t inner) {
  Job job = {.outer = outer, .count = count, .inner = inner, .out = out, .x = x, .index = index};
  double cost = 0.2 * outer * count * inner;
  if (inner == 1) parallel(chunks(outer, ROWS), cost, max_rows, &job);
  else parallel(outer * chunks(inner, W), cost, max_columns, &job);
}
