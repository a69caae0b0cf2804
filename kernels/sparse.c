/* Products with matrices of which only some elements are stored. */
#include "vector.h"

#if defined(__AVX512F__)
enum { VECTORS = 16 };
#else
enum { VECTORS = 8 };
#endif
enum { ROWS = 32, SAMPLES = 1024, AHEAD = 2 };

typedef struct {
  int32_t rows, dim, count;
  float *out, *values, *x, *other;
  int32_t *order, *columns, *pointers;
} Job;

/* out[0…n·W) = Σ values·x over the elements of one row, kept in n registers. */
INLINE void tile(const Job *job, float *out, const float *x, int32_t from, int32_t to, const int n) {
  vf total[VECTORS];
  for (int v = 0; v < n; v++) total[v] = (vf){0};
  for (int32_t k = from; k < to; k++) {
    if (k + AHEAD < job->count)
      for (int v = 0; v < n; v += 16 / W) __builtin_prefetch(x + (ptrdiff_t)job->columns[k + AHEAD] * job->dim + v * W);
    vf value = splat(job->values[job->order ? job->order[k] : k]);
    const float *row = x + (ptrdiff_t)job->columns[k] * job->dim;
    for (int v = 0; v < n; v++) total[v] = vfma(value, load(row + v * W), total[v]);
  }
  for (int v = 0; v < n; v++) store(out + v * W, total[v]);
}

static void product(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  for (int32_t r = task * ROWS; r < least(job->rows, (task + 1) * ROWS); r++) {
    float *out = job->out + (ptrdiff_t)r * job->dim;
    int32_t from = job->pointers[r], to = job->pointers[r + 1], j = 0;
    for (; j + VECTORS * W <= job->dim; j += VECTORS * W) tile(job, out + j, job->x + j, from, to, VECTORS);
    for (; j + 4 * W <= job->dim; j += 4 * W) tile(job, out + j, job->x + j, from, to, 4);
    for (; j + W <= job->dim; j += W) tile(job, out + j, job->x + j, from, to, 1);
    for (; j < job->dim; j++) {
      float total = 0;
      for (int32_t k = from; k < to; k++) total += job->values[job->order ? job->order[k] : k] * job->x[(ptrdiff_t)job->columns[k] * job->dim + j];
      out[j] = total;
    }
  }
}

/* out values order? columns pointers x | rows cols count dim */
void K(csr_product)(float *out, float *values, int32_t *order, int32_t *columns, int32_t *pointers, float *x, int32_t rows, int32_t cols, int32_t count,
                    int32_t dim) {
  (void)cols;
  Job job = {.rows = rows, .dim = dim, .count = count, .out = out, .values = values, .x = x, .order = order, .columns = columns, .pointers = pointers};
  parallel(chunks(rows, ROWS), 0.1 * ((double)count + rows) * dim, product, &job);
}

static void sampled(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  for (int32_t k = task * SAMPLES; k < least(job->count, (task + 1) * SAMPLES); k++) {
    const float *a = job->x + (ptrdiff_t)job->pointers[k] * job->dim, *b = job->other + (ptrdiff_t)job->columns[k] * job->dim;
    vf sums[4] = {{0}, {0}, {0}, {0}};
    int32_t j = 0;
    for (; j + 4 * W <= job->dim; j += 4 * W)
      for (int u = 0; u < 4; u++) sums[u] = vfma(load(a + j + u * W), load(b + j + u * W), sums[u]);
    for (; j + W <= job->dim; j += W) sums[0] = vfma(load(a + j), load(b + j), sums[0]);
    vf both = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0;
    for (int lane = 0; lane < W; lane++) total += both[lane];
    for (; j < job->dim; j++) total += a[j] * b[j];
    job->out[k] = total;
  }
}

/* out rows columns a b | count aRows bRows dim */
void K(sampled_product)(float *out, int32_t *rows, int32_t *columns, float *a, float *b, int32_t count, int32_t aRows, int32_t bRows, int32_t dim) {
  (void)aRows, (void)bRows;
  Job job = {.count = count, .dim = dim, .out = out, .x = a, .other = b, .pointers = rows, .columns = columns};
  parallel(chunks(count, SAMPLES), 0.1 * count * dim, sampled, &job);
}
