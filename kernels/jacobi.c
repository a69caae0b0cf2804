/* One-sided Jacobi: rotates pairs of rows until they are orthogonal. */
#include "vector.h"

typedef struct {
  double *g, *v, *off;
  int32_t n, m, round, players;
  double tolerance;
} Job;

static void rotate(double *x, double *y, int32_t n, double c, double s) {
  for (int32_t i = 0; i < n; i++) {
    double a = x[i], b = y[i];
    x[i] = c * a - s * b;
    y[i] = s * a + c * b;
  }
}

/* x·x, y·y and x·y. */
static void products(const double *x, const double *y, int32_t n, double *xx, double *yy, double *xy) {
  vd a = {0}, b = {0}, c = {0};
  int32_t i = 0;
  for (; i + H <= n; i += H) {
    vd p = *(const vd_any *)(x + i), q = *(const vd_any *)(y + i);
    a += p * p, b += q * q, c += p * q;
  }
  *xx = *yy = *xy = 0;
  for (int lane = 0; lane < H; lane++) *xx += a[lane], *yy += b[lane], *xy += c[lane];
  for (; i < n; i++) *xx += x[i] * x[i], *yy += y[i] * y[i], *xy += x[i] * y[i];
}

/* Pair `task` of a round-robin tournament: the last player stays, the others go round. */
static void pair(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t ring = job->players - 1;
  int32_t i = (job->round + task) % ring, j = task == 0 ? ring : (job->round + ring - task) % ring;
  if (i >= job->n || j >= job->n) return;
  double *x = job->g + (ptrdiff_t)i * job->m, *y = job->g + (ptrdiff_t)j * job->m, a, b, c;
  products(x, y, job->m, &a, &b, &c);
  if (a < 1e-280 || b < 1e-280) return;
  double cosine = fabs(c) / sqrt(a) / sqrt(b);
  if (!(cosine <= job->off[task])) job->off[task] = cosine;
  if (!(cosine > job->tolerance)) return;
  double zeta = (b - a) / (2 * c), t = copysign(1 / (fabs(zeta) + sqrt(1 + zeta * zeta)), zeta);
  double cs = 1 / sqrt(1 + t * t), sn = cs * t;
  rotate(x, y, job->m, cs, sn);
  rotate(job->v + (ptrdiff_t)i * job->n, job->v + (ptrdiff_t)j * job->n, job->n, cs, sn);
}

/* g n×m, v n×n, off ⌈n/2⌉ | n m tolerance */
void K(jacobi_sweep)(double *g, double *v, double *off, int32_t n, int32_t m, double tolerance) {
  Job job = {g, v, off, n, m, 0, n + n % 2, tolerance};
  for (int32_t i = 0; i < chunks(n, 2); i++) off[i] = 0;
  for (job.round = 0; job.round < job.players - 1; job.round++) parallel(job.players / 2, 0.5 * n * (m + 10.0), pair, &job);
}
