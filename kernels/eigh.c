/* Symmetric eigenproblems in f64: a panel of the tridiagonal reduction, and QL on small tridiagonal blocks. */
#include "vector.h"

enum { STRIPES = 16 };
static const double EPSILON = 0x1p-52, TINY = 1e-140;

typedef struct {
  const double *a, *v;
  double *partial;
  int32_t n, from, rows;
} Stripes;

INLINE double total(vd sum) {
  double s = 0;
  for (int lane = 0; lane < H; lane++) s += sum[lane];
  return s;
}

static double dot(const double *x, const double *y, int32_t n) {
  vd s0 = {0}, s1 = {0};
  int32_t i = 0;
  for (; i + 2 * H <= n; i += 2 * H) {
    s0 += *(const vd_any *)(x + i) * *(const vd_any *)(y + i);
    s1 += *(const vd_any *)(x + i + H) * *(const vd_any *)(y + i + H);
  }
  double s = total(s0 + s1);
  for (; i < n; i++) s += x[i] * y[i];
  return s;
}

static void add_scaled(double *y, double scale, const double *x, int32_t n) {
  for (int32_t i = 0; i < n; i++) y[i] += scale * x[i];
}

/* What `count` (at most four) rows of the upper triangle from row i on contribute to A·v: themselves and their mirror image. */
INLINE void mirrored(const double *a, int32_t n, const double *v, double *out, int32_t i, const int32_t count) {
  const double *row = a + (ptrdiff_t)i * n;
  for (int32_t r = 0; r < count; r++) {
    out[i + r] += row[(ptrdiff_t)r * n + i + r] * v[i + r];
    for (int32_t c = r + 1; c < count; c++) {
      double value = row[(ptrdiff_t)r * n + i + c];
      out[i + r] += value * v[i + c];
      out[i + c] += value * v[i + r];
    }
  }
  vd sums[4] = {{0}};
  int32_t c = i + count;
  for (; c + H <= n; c += H) {
    vd x = *(const vd_any *)(v + c), y = *(vd_any *)(out + c);
    _Pragma("GCC unroll 4") for (int32_t r = 0; r < count; r++) {
      vd value = *(const vd_any *)(row + (ptrdiff_t)r * n + c);
      sums[r] += value * x;
      y += value * v[i + r];
    }
    *(vd_any *)(out + c) = y;
  }
  for (int32_t r = 0; r < count; r++) out[i + r] += total(sums[r]);
  for (; c < n; c++)
    for (int32_t r = 0; r < count; r++) {
      double value = row[(ptrdiff_t)r * n + c];
      out[i + r] += value * v[c];
      out[c] += value * v[i + r];
    }
}

static void stripe(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Stripes *job = data;
  int32_t i = job->from + task * job->rows, end = least(job->n, i + job->rows);
  double *out = job->partial + (ptrdiff_t)task * job->n;
  memset(out + i, 0, (size_t)(job->n - i) * sizeof(double));
  for (; i + 4 <= end; i += 4) mirrored(job->a, job->n, job->v, out, i, 4);
  for (; i < end; i++) mirrored(job->a, job->n, job->v, out, i, 1);
}

/* out = A·v on rows and columns from … n−1 of the upper triangle; the stripes depend on the size alone. */
static void symmetric_product(double *out, const double *a, const double *v, int32_t n, int32_t from, double *partial) {
  int32_t size = n - from, rows = most(16, chunks(chunks(size, STRIPES), 4) * 4), tasks = chunks(size, rows);
  Stripes job = {a, v, partial, n, from, rows};
  parallel(tasks, 0.12 * size * size, stripe, &job);
  memset(out + from, 0, (size_t)size * sizeof(double));
  for (int32_t task = 0; task < tasks; task++) {
    int32_t first = from + task * rows;
    add_scaled(out + first, 1, partial + (ptrdiff_t)task * n + first, n - first);
  }
}

/* Turns x (n numbers) into v with v₀ = 1 and (I − τ·v·vᵀ)·x = β·e₁. Below TINY nothing is left to annihilate. */
static double reflector(double *x, int32_t n, double *beta) {
  double alpha = x[0], rest = dot(x + 1, x + 1, n - 1);
  x[0] = 1;
  if (rest < TINY * TINY) {
    memset(x + 1, 0, (size_t)(n - 1) * sizeof(double));
    *beta = alpha;
    return 0;
  }
  *beta = -copysign(sqrt(alpha * alpha + rest), alpha);
  double scale = 1 / (alpha - *beta);
  for (int32_t i = 1; i < n; i++) x[i] *= scale;
  return (*beta - alpha) / *beta;
}

/* a n×n (upper triangle) | vw 3·width×n : V W V | d e tau | n from width | scratch */
void K(tridiagonal_panel)(double *a, double *vw, double *d, double *e, double *tau, int32_t n, int32_t from, int32_t width, float *scratch) {
  double *partial = (double *)scratch;
  for (int32_t k = 0; k < width; k++) {
    int32_t j = from + k, left = n - j - 1;
    double *row = a + (ptrdiff_t)j * n, *v = vw + (ptrdiff_t)k * n, *w = vw + (ptrdiff_t)(width + k) * n;
    for (int32_t p = 0; p < k; p++) {
      const double *vp = vw + (ptrdiff_t)p * n, *wp = vw + (ptrdiff_t)(width + p) * n;
      double x = vp[j], y = wp[j];
      for (int32_t c = j; c < n; c++) row[c] -= x * wp[c] + y * vp[c];
    }
    d[j] = row[j];
    memset(row, 0, (size_t)(j + 1) * sizeof(double));
    memset(v, 0, (size_t)n * sizeof(double));
    memset(w, 0, (size_t)n * sizeof(double));
    tau[j] = 0;
    if (left > 0) {
      int32_t t = j + 1;
      tau[j] = reflector(row + t, left, e + j);
      memcpy(v + t, row + t, (size_t)left * sizeof(double));
      if (tau[j] != 0) {
        symmetric_product(w, a, v, n, t, partial);
        for (int32_t p = 0; p < k; p++) {
          const double *vp = vw + (ptrdiff_t)p * n + t, *wp = vw + (ptrdiff_t)(width + p) * n + t;
          double x = dot(wp, v + t, left), y = dot(vp, v + t, left);
          for (int32_t c = 0; c < left; c++) w[t + c] -= x * vp[c] + y * wp[c];
        }
        double half = -0.5 * tau[j] * tau[j] * dot(w + t, v + t, left);
        for (int32_t c = t; c < n; c++) w[c] = tau[j] * w[c] + half * v[c];
      }
    }
    memcpy(vw + (ptrdiff_t)(2 * width + k) * n, v, (size_t)n * sizeof(double));
  }
}

INLINE double length(double x, double y) {
  double big = fmax(fabs(x), fabs(y)), ratio = fmin(fabs(x), fabs(y)) / big;
  return big == 0 ? 0 : big * sqrt(1 + ratio * ratio);
}

/* Implicit QL with Wilkinson's shift; eigenvectors gather in the rows of q. Whether every value converged. */
static int ql(double *d, double *e, double *q, int32_t n, ptrdiff_t qRow) {
  double floor = TINY / EPSILON;
  for (int32_t i = 0; i < n; i++) floor = fmax(floor, fmax(fabs(d[i]), i + 1 < n ? fabs(e[i]) : 0));
  floor *= EPSILON / 4;
  for (int32_t l = 0; l < n; l++)
    for (int32_t turn = 0;; turn++) {
      int32_t m = l;
      while (m < n - 1 && !(fabs(e[m]) <= fmax(EPSILON * (fabs(d[m]) + fabs(d[m + 1])), floor))) m++;
      if (m == l) break;
      if (turn == 60) return 0;
      double g = (d[l + 1] - d[l]) / (2 * e[l]), r = length(g, 1), s = 1, c = 1, p = 0;
      g = d[m] - d[l] + e[l] / (g + copysign(r, g));
      int32_t i = m - 1;
      for (; i >= l; i--) {
        double f = s * e[i], b = c * e[i];
        r = length(f, g);
        if (i + 1 < m) e[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= p;
          break;
        }
        s = f / r, c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        if (q) {
          double *x = q + i * qRow, *y = x + qRow;
          for (int32_t at = 0; at < n; at++) {
            double upper = x[at], lower = y[at];
            y[at] = s * upper + c * lower;
            x[at] = c * upper - s * lower;
          }
        }
      }
      if (m < n - 1) e[m] = 0;
      if (i >= l) continue;
      d[l] -= p;
      e[l] = g;
    }
  return 1;
}

typedef struct {
  double *d, *e, *q;
  int32_t n, block, qRow;
} Blocks;

static void block(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Blocks *job = data;
  int32_t at = task * job->block, n = least(job->block, job->n - at);
  double *q = job->q ? job->q + (ptrdiff_t)at * job->qRow + at : NULL;
  for (int32_t i = 0; q && i < n; i++)
    for (int32_t j = 0; j < n; j++) q[(ptrdiff_t)i * job->qRow + j] = i == j;
  if (!ql(job->d + at, job->e + at, q, n, job->qRow)) job->d[at] = NAN;
}

/* d e q? | n block qRow : each block of the diagonal on its own; e between blocks is left alone */
void K(tridiagonal_ql)(double *d, double *e, double *q, int32_t n, int32_t block_size, int32_t qRow) {
  Blocks job = {d, e, q, n, block_size, qRow};
  if (n > 0) parallel(chunks(n, block_size), 4.0 * n * block_size * (q ? block_size : 4), block, &job);
}
