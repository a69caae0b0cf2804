/* The secular equation 1 + Σ zᵢ²/(dᵢ − λ) = 0 of divide and conquer, and the eigenvectors of diag(d) + z·zᵀ. */
#include "vector.h"

static const double EPSILON = 0x1p-52;
enum { COLUMNS = 64, TURNS = 100 };

typedef struct {
  const double *d, *z;
  const int32_t *place;
  double *values, *q, *weights, *rows;
  int32_t k, qRow;
} Job;

typedef struct {
  double value, slope;
} Sums;

/* Σ zᵢ²/δᵢ and its derivative, δᵢ = (dᵢ − origin) − μ. */
static Sums poles(const double *d, const double *z, int32_t n, double origin, double mu) {
  vd value = {0}, slope = {0};
  int32_t i = 0;
  for (; i + H <= n; i += H) {
    vd zi = *(const vd_any *)(z + i), t = zi / (*(const vd_any *)(d + i) - origin - mu);
    value += zi * t;
    slope += t * t;
  }
  Sums sums = {0, 0};
  for (int lane = 0; lane < H; lane++) sums.value += value[lane], sums.slope += slope[lane];
  for (; i < n; i++) {
    double t = z[i] / (d[i] - origin - mu);
    sums.value += z[i] * t;
    sums.slope += t * t;
  }
  return sums;
}

/* A root of c·η² − a·η + b: the one between the poles, or, right of both, the larger. */
static double root_of(double a, double b, double c, int outer) {
  double r = sqrt(fmax(0, a * a - 4 * b * c));
  if (outer) return a >= 0 ? (a + r) / (2 * c) : 2 * b / (a - r);
  return a <= 0 ? (a - r) / (2 * c) : 2 * b / (a + r);
}

/* The root between d[j] and d[j+1], or right of the last pole: as distance μ from the pole it is nearest to. */
static double root(const double *d, const double *z, int32_t k, int32_t j, int32_t *origin) {
  int outer = j == k - 1;
  int32_t left = outer ? j - 1 : j, split = left + 1;
  double low = 0, high, mu;
  *origin = j;
  if (outer) {
    high = 0;
    for (int32_t i = 0; i < k; i++) high += z[i] * z[i];
    mu = high / 2;
  } else {
    double gap = d[j + 1] - d[j], half = gap / 2;
    double value = 1 + poles(d, z, split, d[j], half).value + poles(d + split, z + split, k - split, d[j], half).value;
    double s1 = z[j] * z[j], s2 = z[j + 1] * z[j + 1], c = value - s1 / -half - s2 / half;
    if (value >= 0) mu = root_of(c * gap + s1 + s2, s1 * gap, c, 0), high = half;
    else *origin = j + 1, mu = root_of(-c * gap + s1 + s2, -s2 * gap, c, 0), low = -half, high = 0;
  }
  double center = d[*origin];
  for (int32_t turn = 0; turn < TURNS; turn++) {
    if (!(mu > low && mu < high)) mu = low + (high - low) / 2;
    if (mu == low || mu == high) break;
    Sums a = poles(d, z, split, center, mu), b = poles(d + split, z + split, k - split, center, mu);
    double value = 1 + a.value + b.value;
    if (fabs(value) <= EPSILON * (8 * (1 + fabs(a.value) + fabs(b.value)) + fabs(mu) * (a.slope + b.slope))) break;
    if (value < 0) low = mu;
    else high = mu;
    if (high - low <= EPSILON * fmax(fabs(low), fabs(high))) break;
    double near = d[left] - center - mu, far = d[split] - center - mu;
    double c = value - near * a.slope - far * b.slope;
    double s1 = a.slope * near * near, s2 = b.slope * far * far;
    double step = root_of(c * (near + far) + s1 + s2, near * far * value, c, outer);
    mu = turn % 8 == 7 ? NAN : mu + step;
  }
  return mu;
}

static void solve(int32_t j, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t k = job->k, origin = 0;
  double mu = k == 1 ? job->z[0] * job->z[0] : root(job->d, job->z, k, j, &origin), center = job->d[origin];
  double *row = job->q + (ptrdiff_t)j * job->qRow;
  for (int32_t i = 0; i < k; i++) row[i] = job->d[i] - center - mu;
  job->values[j] = center + mu;
}

/* Löwner's formula: the z for which the computed values are exact. */
static void weigh(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t from = task * COLUMNS, n = least(COLUMNS, job->k - from);
  const double *d = job->d + from;
  double *w = job->weights + from;
  for (int32_t i = 0; i < n; i++) w[i] = 1;
  for (int32_t j = 0; j < job->k; j++) {
    const double *delta = job->q + (ptrdiff_t)j * job->qRow + from;
    double pole = job->d[j];
    int32_t own = j - from, before = most(0, least(own, n));
    for (int32_t i = 0; i < before; i++) w[i] *= delta[i] / (d[i] - pole);
    if (own >= 0 && own < n) w[own] *= delta[own];
    for (int32_t i = own < 0 ? 0 : before + 1; i < n; i++) w[i] *= delta[i] / (d[i] - pole);
  }
  for (int32_t i = 0; i < n; i++) w[i] = copysign(sqrt(fabs(w[i])), job->z[from + i]);
}

static void vector(int32_t j, int32_t slot, const void *data) {
  const Job *job = data;
  double *row = job->q + (ptrdiff_t)j * job->qRow, *spare = job->rows + (ptrdiff_t)slot * job->k, sum = 0;
  vd squares = {0};
  int32_t i = 0;
  for (; i + H <= job->k; i += H) {
    vd x = *(const vd_any *)(job->weights + i) / *(vd_any *)(row + i);
    *(vd_any *)(spare + i) = x;
    squares += x * x;
  }
  for (; i < job->k; i++) spare[i] = job->weights[i] / row[i], sum += spare[i] * spare[i];
  for (int lane = 0; lane < H; lane++) sum += squares[lane];
  double scale = 1 / sqrt(sum);
  for (i = 0; i < job->k; i++) row[job->place[i]] = scale * spare[i];
}

/* values q | d z place | k qRow | scratch : d ascending, z without zeros; eigenvector j is row j, its part of pole i at place[i] */
void K(secular)(double *values, double *q, double *d, double *z, int32_t *place, int32_t k, int32_t qRow, float *scratch) {
  double *weights = (double *)scratch;
  Job job = {d, z, place, values, q, weights, weights + k, k, qRow};
  double work = (double)k * k;
  parallel(k, 8 * work, solve, &job);
  parallel(chunks(k, COLUMNS), work, weigh, &job);
  parallel(k, work, vector, &job);
}
