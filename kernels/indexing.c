/* Elements by index, by condition and by rank. */
#include "vector.h"

enum { BLOCK = 4096, COLUMNS = 16 };

typedef struct {
  int32_t outer, count, extent, inner, step;
  float *out, *x, *a, *b;
  int32_t *index;
  float edge;
  int32_t ties, down;
} Job;

static void gather_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t inner = job->inner, r = task * job->step, end = least(job->outer * job->count, r + job->step), c = r % job->count;
  const float *x = job->x + (ptrdiff_t)(r / job->count) * job->extent * inner;
  float *out = job->out + (ptrdiff_t)r * inner;
  const int32_t *index = job->index + (ptrdiff_t)r * inner;
  for (; r < end; r++) {
    for (int32_t i = 0; i < inner; i++) *out++ = x[(ptrdiff_t)*index++ * inner + i];
    if (++c == job->count) c = 0, x += (ptrdiff_t)job->extent * inner;
  }
}

/* out | x index | outer count extent inner */
void K(gather_along)(float *out, float *x, int32_t *index, int32_t outer, int32_t count, int32_t extent, int32_t inner) {
  Job job = {.outer = outer, .count = count, .extent = extent, .inner = inner, .step = most(1, BLOCK / most(1, inner)), .out = out, .x = x, .index = index};
  parallel(chunks(outer * count, job.step), 2.0 * outer * count * inner, gather_part, &job);
}

/* A task owns some columns, so that whatever meets in one element is added in order. */
static void scatter_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t bands = chunks(job->inner, COLUMNS), inner = job->inner, from = task % bands * COLUMNS, to = least(inner, from + COLUMNS);
  ptrdiff_t o = task / bands;
  float *out = job->out + o * job->extent * inner;
  const float *x = job->x + o * job->count * inner;
  const int32_t *index = job->index + o * job->count * inner;
  for (int32_t c = 0; c < job->count; c++, x += inner, index += inner)
    for (int32_t i = from; i < to; i++) out[(ptrdiff_t)index[i] * inner + i] += x[i];
}

/* out | x index | outer count extent inner */
void K(scatter_add_along)(float *out, float *x, int32_t *index, int32_t outer, int32_t count, int32_t extent, int32_t inner) {
  Job job = {.outer = outer, .count = count, .extent = extent, .inner = inner, .out = out, .x = x, .index = index};
  parallel(outer * chunks(inner, COLUMNS), 3.0 * outer * count * inner, scatter_part, &job);
}

static void choose_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t from = task * BLOCK, n = least(BLOCK, job->count - from);
  const float *condition = job->x + from, *a = job->a + from, *b = job->b + from;
  float *out = job->out + from;
  int32_t i = 0;
  for (; i + W <= n; i += W) store(out + i, pick(load(condition + i) != 0.f, load(a + i), load(b + i)));
  for (; i < n; i++) memcpy(out + i, condition[i] != 0.f ? a + i : b + i, sizeof(float));
}

/* out | condition a b | n */
void K(where)(float *out, float *condition, float *a, float *b, int32_t n) {
  Job job = {.count = n, .out = out, .x = condition, .a = a, .b = b};
  parallel(chunks(n, BLOCK), 0.4 * n, choose_part, &job);
}

static void mask_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t from = task * BLOCK, n = least(BLOCK, job->count - from), ties = most(0, least(n, job->ties - from));
  const float *x = job->x + from, edge = job->edge;
  float *out = job->out + from;
  if (edge != edge) {
    for (int32_t i = 0; i < n; i++) out[i] = x[i] == x[i] || i < ties ? 1.f : 0.f;
    return;
  }
  if (job->down)
    for (int32_t i = 0; i < n; i++) out[i] = x[i] > edge ? 1.f : 0.f;
  else
    for (int32_t i = 0; i < n; i++) out[i] = x[i] < edge ? 1.f : 0.f;
  for (int32_t i = 0; i < ties; i++)
    if (x[i] == edge) out[i] = 1.f;
}

/* out | x | n ties down edge */
void K(rank_mask)(float *out, float *x, int32_t n, int32_t ties, int32_t down, double edge) {
  Job job = {.count = n, .out = out, .x = x, .ties = ties, .down = down, .edge = (float)edge};
  parallel(chunks(n, BLOCK), 0.4 * n, mask_part, &job);
}
