/* Householder reflectors of a panel, in f64. A column of the matrix is a row here, so that every sum runs along memory. */
#include "vector.h"

enum { INNER = 4, PAIR = 2 };
static const double TINY = 1e-140;

#define EACH(i, n) _Pragma("GCC unroll 4") for (int32_t i = 0; i < (n); i++)
INLINE vd at(const double *p) { return *(const vd_any *)p; }

/* out[x·INNER + p] = Σ x·v_p over n numbers, for `count` rows v and `wide` rows x. */
INLINE void dots(double *out, const double *v, ptrdiff_t vRow, const double *x, ptrdiff_t xRow, int32_t n, const int32_t count,
                 const int32_t wide) {
  vd sums[PAIR][INNER] = {{{0}}};
  int32_t i = 0;
  for (; i + H <= n; i += H) EACH(c, wide) {
      vd value = at(x + c * xRow + i);
      EACH(p, count) sums[c][p] += value * at(v + p * vRow + i);
    }
  EACH(c, wide) EACH(p, count) {
    double total = 0;
    for (int lane = 0; lane < H; lane++) total += sums[c][p][lane];
    for (int32_t r = i; r < n; r++) total += x[c * xRow + r] * v[p * vRow + r];
    out[c * INNER + p] = total;
  }
}

/* x −= Σ_p out[x·INNER + p]·v_p */
INLINE void subtract(const double *out, const double *v, ptrdiff_t vRow, double *x, ptrdiff_t xRow, int32_t n, const int32_t count,
                     const int32_t wide) {
  int32_t i = 0;
  for (; i + H <= n; i += H) EACH(c, wide) {
      vd value = at(x + c * xRow + i);
      EACH(p, count) value -= at(v + p * vRow + i) * out[c * INNER + p];
      *(vd_any *)(x + c * xRow + i) = value;
    }
  for (; i < n; i++) EACH(c, wide) {
      double value = x[c * xRow + i];
      EACH(p, count) value -= v[p * vRow + i] * out[c * INNER + p];
      x[c * xRow + i] = value;
    }
}

typedef struct {
  double *w, *v, *t;
  int32_t length, width, wRow, vRow, first, count;
} Panel;

/* (I − V·Tᵀ·Vᵀ)·x for `wide` columns x and the `count` reflectors from `first` on. */
INLINE void reflect(const Panel *job, int32_t column, const int32_t count, const int32_t wide) {
  int32_t n = job->length - job->first;
  const double *v = job->v + (ptrdiff_t)job->first * job->vRow + job->first, *t = job->t + job->first * (job->width + 1);
  double *x = job->w + (ptrdiff_t)column * job->wRow + job->first, found[PAIR * INNER], turned[PAIR * INNER];
  dots(found, v, job->vRow, x, job->wRow, n, count, wide);
  for (int32_t c = 0; c < wide; c++)
    for (int32_t p = 0; p < count; p++) {
      double sum = 0;
      for (int32_t q = 0; q <= p; q++) sum += t[q * job->width + p] * found[c * INNER + q];
      turned[c * INNER + p] = sum;
    }
  subtract(turned, v, job->vRow, x, job->wRow, n, count, wide);
}

static void columns(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Panel *job = data;
  int32_t column = job->first + job->count + PAIR * task;
  if (column + PAIR > job->width) job->count == INNER ? reflect(job, column, INNER, 1) : reflect(job, column, 1, 1);
  else if (job->count == INNER) reflect(job, column, INNER, PAIR);
  else reflect(job, column, 1, PAIR);
}

/* Makes column j of the panel v_j with v_jj = 1, so that (I − τ·v·vᵀ)·x = β·e₁; w keeps β and zeros below. */
static double reflector(const Panel *job, int32_t j) {
  int32_t n = job->length - j - 1;
  double *x = job->w + (ptrdiff_t)j * job->wRow + j, *v = job->v + (ptrdiff_t)j * job->vRow, alpha = x[0], rest;
  memset(v, 0, (size_t)job->length * sizeof(double));
  v[j] = 1;
  dots(&rest, x + 1, 0, x + 1, 0, n, 1, 1);
  double tau = 0;
  if (!(rest < TINY * TINY)) {
    double beta = -copysign(sqrt(alpha * alpha + rest), alpha), scale = 1 / (alpha - beta);
    for (int32_t i = 1; i <= n; i++) v[j + i] = x[i] * scale;
    x[0] = beta;
    tau = (beta - alpha) / beta;
  }
  memset(x + 1, 0, (size_t)n * sizeof(double));
  return tau;
}

/* Column j of the T of the reflectors from `first` on: T_jj = τ and T_ij = −τ·Σ_k T_ik·(v_k·v_j). */
static void grow(const Panel *job, int32_t j, double tau) {
  int32_t b = job->width, n = job->length - j;
  double *t = job->t, found[INNER];
  const double *v = job->v + j;
  for (int32_t i = job->first; i < j; i++) dots(found + i - job->first, v + (ptrdiff_t)i * job->vRow, 0, v + (ptrdiff_t)j * job->vRow, 0, n, 1, 1);
  for (int32_t i = job->first; i < j; i++) {
    double sum = 0;
    for (int32_t k = i; k < j; k++) sum += t[i * b + k] * found[k - job->first];
    t[i * b + j] = -tau * sum;
  }
  t[j * b + j] = tau;
}

/* The rows of T above those reflectors: −T₁·(V₁ᵀ·V₂)·T₂, with T₁ and T₂ on the diagonal. */
static void join(const Panel *job) {
  int32_t b = job->width, first = job->first, count = job->count, n = job->length - first;
  double *t = job->t, found[PAIR * INNER];
  const double *v = job->v + first, *own = v + (ptrdiff_t)first * job->vRow;
  for (int32_t i = 0; i < first; i++) {
    const double *x = v + (ptrdiff_t)i * job->vRow;
    if (count == INNER) dots(found, own, job->vRow, x, 0, n, INNER, 1);
    else dots(found, own, job->vRow, x, 0, n, 1, 1);
    for (int32_t p = 0; p < count; p++) {
      double sum = 0;
      for (int32_t q = 0; q <= p; q++) sum += found[q] * t[(first + q) * b + first + p];
      t[i * b + first + p] = sum;
    }
  }
  for (int32_t i = 0; i < first; i++)
    for (int32_t p = first; p < first + count; p++) {
      double sum = 0;
      for (int32_t k = i; k < first; k++) sum += t[i * b + k] * t[k * b + p];
      t[i * b + p] = -sum;
    }
}

/* w v t | length width wRow vRow */
void K(householder_panel)(double *w, double *v, double *t, int32_t length, int32_t width, int32_t wRow, int32_t vRow) {
  memset(t, 0, (size_t)width * (size_t)width * sizeof(double));
  for (int32_t first = 0; first < width;) {
    int32_t count = width - first >= INNER ? INNER : 1;
    Panel job = {w, v, t, length, width, wRow, vRow, first, 0};
    for (; job.count < count; job.count++) {
      int32_t j = first + job.count;
      for (int32_t i = first; i < j; i++) {
        Panel one = {w, v, t, length, width, wRow, vRow, i, 1};
        reflect(&one, j, 1, 1);
      }
      grow(&job, j, reflector(&job, j));
    }
    join(&job);
    int32_t left = width - first - count;
    parallel(chunks(left, PAIR), 0.4 * count * left * (length - first), columns, &job);
    first += count;
  }
}
