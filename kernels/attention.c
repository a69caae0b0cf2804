/*
 * Attention by blocks of queries and keys (Dao et al. 2022, arXiv:2205.14135): the softmax of a row is kept up to date with
 * its largest score and the sum of its exponentials, so no more than one block of scores exists at a time.
 */
#include "product.h"
#include "vmath.h"

enum { QUERIES = 48, KEYS = 128, COPIED_DIM = 256 };

/* c = alpha·A·B + beta·c, with rows and columns as in Product. */
#define PRODUCT_OF(m, n, k, alpha, beta, a, aRow, aCol, b, bRow, bCol, c, cRow) \
  (Product) { m, n, k, alpha, beta, a, aRow, aCol, b, bRow, bCol, c, cRow, 1, NULL, 0, 0 }

typedef struct {
  float *at;
  ptrdiff_t batch, token, head;
} Strided;

typedef struct {
  float *out, *lse, *dout, *dq, *dk, *dv;
  Strided q, k, v;
  int32_t batch, heads, kvHeads, tq, tk, dim, causal, room;
  float scale;
  float *scratch;
} Job;

INLINE const float *head_of(const Strided *x, int32_t b, int32_t h) { return x->at + b * x->batch + h * x->head; }

/* Keys from `from` on that query i sees, of at most n. */
INLINE int32_t seen(const Job *job, int32_t i, int32_t from, int32_t n) {
  return job->causal ? most(0, least(n, i + job->tk - job->tq + 1 - from)) : n;
}

/* Keys that some query before `end` sees. */
INLINE int32_t seen_before(const Job *job, int32_t end) { return seen(job, end - 1, 0, job->tk); }

static void product(const Job *job, Product p, float *scratch, int32_t used) {
  K(multiply)(&p, scratch + used, job->room - used);
}

INLINE float exp_of(float x) { return vexp(splat(x))[0]; }

static void scale_row(float *x, float by, int32_t n) {
  int32_t i = 0;
  for (; i + W <= n; i += W) store(x + i, load(x + i) * by);
  for (; i < n; i++) x[i] *= by;
}

/* s = exp(s − top) for the n keys seen and 0 up to the width of the block; returns the sum. Rows have room for whole vectors. */
static double exponentials(float *s, float top, int32_t n, int32_t width) {
  Sum sum = {0};
  vi lane;
  for (int32_t i = 0; i < W; i++) lane[i] = i;
  for (int32_t i = 0; i < width; i += W) {
    vf e = pick(lane + i < n, vexp(load(s + i) - top), splat(0.f));
    store(s + i, e);
    sum_add(&sum, e);
  }
  return sum_total(&sum);
}

/* Queries side by side, so that the rows of a tile do not share cache sets. */
static const float *copy_queries(const Job *job, float *to, const float *q, int32_t n, ptrdiff_t *row) {
  if (job->dim > COPIED_DIM) return q;
  for (int32_t i = 0; i < n; i++) memcpy(to + i * job->dim, q + i * job->q.token, (size_t)job->dim * sizeof(float));
  *row = job->dim;
  return to;
}

static void forward_block(int32_t task, int32_t slot, const void *data) {
  const Job *job = data;
  int32_t blocks = chunks(job->tq, QUERIES), dim = job->dim;
  int32_t from = task % blocks * QUERIES, h = task / blocks % job->heads, b = task / blocks / job->heads;
  int32_t n = least(QUERIES, job->tq - from), kv = h * job->kvHeads / job->heads;
  float *scores = job->scratch + (ptrdiff_t)slot * job->room, *tops = scores + QUERIES * KEYS, *copied = tops + QUERIES;
  double sums[QUERIES];
  int32_t used = QUERIES * (KEYS + 1 + (dim > COPIED_DIM ? 0 : dim));

  ptrdiff_t qRow = job->q.token, outRow = (ptrdiff_t)job->heads * dim;
  const float *q = copy_queries(job, copied, head_of(&job->q, b, h) + from * qRow, n, &qRow);
  const float *k = head_of(&job->k, b, kv), *v = head_of(&job->v, b, kv);
  float *out = job->out + ((ptrdiff_t)b * job->tq + from) * outRow + h * dim;
  for (int32_t i = 0; i < n; i++) tops[i] = -INFINITY, sums[i] = 0;

  int32_t keys = seen_before(job, from + n);
  for (int32_t j = 0; j < keys; j += KEYS) {
    int32_t width = least(KEYS, keys - j);
    product(job, PRODUCT_OF(n, width, dim, job->scale, 0, q, qRow, 1, k + j * job->k.token, 1, job->k.token, scores, KEYS), scores, used);
    for (int32_t i = 0; i < n; i++) {
      float *s = scores + i * KEYS;
      int32_t count = seen(job, from + i, j, width);
      float top = count ? largest(s, count, tops[i]) : tops[i];
      double sum = exponentials(s, top, count, width);
      if (top != tops[i] && j > 0) {
        float shrink = exp_of(tops[i] - top);
        scale_row(out + i * outRow, shrink, dim);
        sums[i] *= shrink;
      }
      sums[i] += sum;
      tops[i] = top;
    }
    product(job, PRODUCT_OF(n, dim, width, 1, j > 0, scores, KEYS, 1, v + j * job->v.token, job->v.token, 1, out, outRow), scores, used);
  }
  float *lse = job->lse + ((ptrdiff_t)b * job->heads + h) * job->tq + from;
  for (int32_t i = 0; i < n; i++) {
    int blind = seen(job, from + i, 0, job->tk) == 0;
    if (blind) memset(out + i * outRow, 0, (size_t)dim * sizeof(float));
    else scale_row(out + i * outRow, (float)(1 / sums[i]), dim);
    lse[i] = blind ? -INFINITY : (float)(tops[i] + log(sums[i]));
  }
}

void K(attention)(float *out, float *lse, float *q, int32_t qB, int32_t qT, int32_t qH, float *k, int32_t kB, int32_t kT, int32_t kH, float *v,
                  int32_t vB, int32_t vT, int32_t vH, int32_t batch, int32_t heads, int32_t kvHeads, int32_t tq, int32_t tk, int32_t dim,
                  double scale, int32_t causal, float *scratch) {
  Job job = {.out = out, .lse = lse, .q = {q, qB, qT, qH}, .k = {k, kB, kT, kH}, .v = {v, vB, vT, vH}, .batch = batch, .heads = heads,
             .kvHeads = kvHeads, .tq = tq, .tk = tk, .dim = dim, .causal = causal, .scale = (float)scale, .scratch = scratch, .room = slot_floats()};
  double cost = (double)batch * heads * tq * tk * (0.04 * dim + 0.5);
  parallel(batch * heads * chunks(tq, QUERIES), cost, forward_block, &job);
}

/* s = exp(s − lse) for the keys seen, else 0; ds = s·(ds − delta)·scale. */
static void score_gradients(float *s, float *ds, float lse, float delta, float scale, int32_t n, int32_t width) {
  vi lane;
  for (int32_t i = 0; i < W; i++) lane[i] = i;
  for (int32_t i = 0; i < width; i += W) {
    vi mask = lane + i < n;
    vf p = pick(mask, vexp(load(s + i) - lse), splat(0.f));
    store(s + i, p);
    store(ds + i, pick(mask, p * (load(ds + i) - delta) * scale, splat(0.f)));
  }
}

static double dot(const float *a, const float *b, int32_t n) {
  Sum sum = {0};
  int32_t i = 0;
  for (; i + W <= n; i += W) sum_add(&sum, load(a + i) * load(b + i));
  if (i < n) sum_add(&sum, load_part(a + i, n - i) * load_part(b + i, n - i));
  return sum_total(&sum);
}

static void backward_block(const Job *job, int32_t b, int32_t kv, int32_t h, int32_t from, float *scratch) {
  int32_t dim = job->dim, n = least(QUERIES, job->tq - from);
  ptrdiff_t qRow = job->q.token, row = (ptrdiff_t)job->heads * dim, keyRow = (ptrdiff_t)job->kvHeads * dim;
  ptrdiff_t at = ((ptrdiff_t)b * job->tq + from) * row + h * dim;
  float *s = scratch, *ds = s + QUERIES * KEYS, *copied = ds + QUERIES * KEYS;
  int32_t used = QUERIES * (2 * KEYS + (dim > COPIED_DIM ? 0 : dim));
  const float *q = copy_queries(job, copied, head_of(&job->q, b, h) + from * qRow, n, &qRow);
  const float *dout = job->dout + at, *lse = job->lse + ((ptrdiff_t)b * job->heads + h) * job->tq + from;
  float delta[QUERIES];
  for (int32_t i = 0; i < n; i++) delta[i] = (float)dot(dout + i * row, job->out + at + i * row, dim);

  int32_t keys = seen_before(job, from + n);
  if (keys == 0)
    for (int32_t i = 0; i < n; i++) memset(job->dq + at + i * row, 0, (size_t)dim * sizeof(float));
  for (int32_t j = 0; j < keys; j += KEYS) {
    int32_t width = least(KEYS, keys - j);
    const float *k = head_of(&job->k, b, kv) + j * job->k.token, *v = head_of(&job->v, b, kv) + j * job->v.token;
    ptrdiff_t to = ((ptrdiff_t)b * job->tk + j) * keyRow + kv * dim;
    product(job, PRODUCT_OF(n, width, dim, job->scale, 0, q, qRow, 1, k, 1, job->k.token, s, KEYS), scratch, used);
    product(job, PRODUCT_OF(n, width, dim, 1, 0, dout, row, 1, v, 1, job->v.token, ds, KEYS), scratch, used);
    for (int32_t i = 0; i < n; i++)
      score_gradients(s + i * KEYS, ds + i * KEYS, lse[i], delta[i], job->scale, seen(job, from + i, j, width), width);
    product(job, PRODUCT_OF(width, dim, n, 1, 1, s, 1, KEYS, dout, row, 1, job->dv + to, keyRow), scratch, used);
    product(job, PRODUCT_OF(width, dim, n, 1, 1, ds, 1, KEYS, q, qRow, 1, job->dk + to, keyRow), scratch, used);
    product(job, PRODUCT_OF(n, dim, width, 1, j > 0, ds, KEYS, 1, k, job->k.token, 1, job->dq + at, row), scratch, used);
  }
}

/* One key head: every query head that reads it, in order, so that its sums have one order. */
static void backward_head(int32_t task, int32_t slot, const void *data) {
  const Job *job = data;
  int32_t b = task / job->kvHeads, kv = task % job->kvHeads, dim = job->dim;
  for (int32_t t = 0; t < job->tk; t++) {
    ptrdiff_t at = (((ptrdiff_t)b * job->tk + t) * job->kvHeads + kv) * dim;
    memset(job->dk + at, 0, (size_t)dim * sizeof(float));
    memset(job->dv + at, 0, (size_t)dim * sizeof(float));
  }
  for (int32_t h = 0; h < job->heads; h++)
    if (h * job->kvHeads / job->heads == kv)
      for (int32_t from = 0; from < job->tq; from += QUERIES)
        backward_block(job, b, kv, h, from, job->scratch + (ptrdiff_t)slot * job->room);
}

void K(attention_backward)(float *dq, float *dk, float *dv, float *dout, float *out, float *lse, float *q, int32_t qB, int32_t qT, int32_t qH,
                           float *k, int32_t kB, int32_t kT, int32_t kH, float *v, int32_t vB, int32_t vT, int32_t vH, int32_t batch,
                           int32_t heads, int32_t kvHeads, int32_t tq, int32_t tk, int32_t dim, double scale, int32_t causal, float *scratch) {
  Job job = {.dq = dq, .dk = dk, .dv = dv, .dout = dout, .out = out, .lse = lse, .q = {q, qB, qT, qH}, .k = {k, kB, kT, kH},
             .v = {v, vB, vT, vH}, .batch = batch, .heads = heads, .kvHeads = kvHeads, .tq = tq, .tk = tk, .dim = dim, .causal = causal,
             .scale = (float)scale, .scratch = scratch, .room = slot_floats()};
  double cost = (double)batch * heads * tq * tk * (0.1 * dim + 1);
  parallel(batch * kvHeads, cost, backward_head, &job);
}
