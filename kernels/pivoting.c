/* Orders of elimination that look at more than one column: LU with rook pivoting, and QR with column pivoting. */
#include "vector.h"

typedef struct {
  double *a, *norms;
  int32_t k, m, n, row;
} Step;

enum { ROWS = 8 };

static void exchange(double *x, double *y, int32_t n, ptrdiff_t step) {
  for (int32_t i = 0; i < n; i++) {
    double kept = x[i * step];
    x[i * step] = y[i * step];
    y[i * step] = kept;
  }
}

static void exchange_order(int32_t *order, int32_t i, int32_t j) {
  int32_t kept = order[i];
  order[i] = order[j];
  order[j] = kept;
}

/* The first place from `from` on of the largest magnitude, or `best` if none exceeds it. */
static int32_t largest_at(const double *x, ptrdiff_t step, int32_t from, int32_t n, int32_t best) {
  for (int32_t i = from; i < n; i++)
    if (fabs(x[i * step]) > fabs(x[best * step])) best = i;
  return best;
}

static void eliminate_rows(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Step *job = data;
  const double *own = job->a + (ptrdiff_t)job->k * job->row;
  int32_t first = job->k + 1 + task * ROWS;
  for (int32_t i = first; i < least(job->m, first + ROWS); i++) {
    double *row = job->a + (ptrdiff_t)i * job->row, factor = row[job->k] /= own[job->k];
    for (int32_t j = job->k + 1; j < job->n; j++) row[j] -= factor * own[j];
  }
}

/* a rows columns | m n aRow */
void K(lu_rook)(double *a, int32_t *rows, int32_t *columns, int32_t m, int32_t n, int32_t aRow) {
  for (int32_t i = 0; i < m; i++) rows[i] = i;
  for (int32_t j = 0; j < n; j++) columns[j] = j;
  for (int32_t k = 0; k < least(m, n); k++) {
    int32_t i = k, j = k, before;
    /* the largest of its column, then of that row, until one is both; a column of zeros gives way to the next */
    while (j < n && (i = largest_at(a + j, aRow, k, m, k), a[(ptrdiff_t)i * aRow + j] == 0)) j++;
    if (j == n) return;
    do {
      before = i;
      j = largest_at(a + (ptrdiff_t)i * aRow, 1, k, n, j);
      i = largest_at(a + j, aRow, k, m, i);
    } while (i != before);
    exchange(a + (ptrdiff_t)k * aRow, a + (ptrdiff_t)i * aRow, n, 1);
    exchange(a + k, a + j, m, aRow);
    exchange_order(rows, k, i);
    exchange_order(columns, k, j);
    Step job = {.a = a, .k = k, .m = m, .n = n, .row = aRow};
    parallel(chunks(m - k - 1, ROWS), 0.3 * (m - k) * (n - k), eliminate_rows, &job);
  }
}

INLINE double square_sum(const double *x, int32_t n) {
  vd sum = {0};
  double total = 0;
  int32_t i = 0;
  for (; i + H <= n; i += H) sum += *(const vd_any *)(x + i) * *(const vd_any *)(x + i);
  for (int lane = 0; lane < H; lane++) total += sum[lane];
  for (; i < n; i++) total += x[i] * x[i];
  return total;
}

/* x −= (v·x)·v for the columns after k, v of norm √2 in row k, and what is left of their norms. */
static void reflect_columns(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Step *job = data;
  int32_t from = job->k, n = job->m - from, first = job->k + 1 + task * ROWS;
  const double *v = job->a + (ptrdiff_t)job->k * job->row + from;
  for (int32_t c = first; c < least(job->n, first + ROWS); c++) {
    double *x = job->a + (ptrdiff_t)c * job->row + from, dot = 0;
    vd sum = {0};
    int32_t i = 0;
    for (; i + H <= n; i += H) sum += *(const vd_any *)(v + i) * *(const vd_any *)(x + i);
    for (int lane = 0; lane < H; lane++) dot += sum[lane];
    for (; i < n; i++) dot += v[i] * x[i];
    for (i = 0; i < n; i++) x[i] -= dot * v[i];
    job->norms[c] = square_sum(x + 1, n - 1);
  }
}

/* w order norms | n m wRow */
void K(pivot_order)(double *w, int32_t *order, double *norms, int32_t n, int32_t m, int32_t wRow) {
  for (int32_t c = 0; c < n; c++) {
    order[c] = c;
    norms[c] = square_sum(w + (ptrdiff_t)c * wRow, m);
  }
  for (int32_t k = 0; k < least(m, n); k++) {
    int32_t best = largest_at(norms, 1, k, n, k);
    exchange(w + (ptrdiff_t)k * wRow, w + (ptrdiff_t)best * wRow, m, 1);
    exchange(norms + k, norms + best, 1, 1);
    exchange_order(order, k, best);
    if (!(norms[k] > 1e-280)) return;
    double *x = w + (ptrdiff_t)k * wRow + k, size = sqrt(norms[k]), lead = fabs(x[0]) + size;
    /* x + sign(x₀)·‖x‖·e₁ has the norm √(2·‖x‖·(‖x‖ + |x₀|)) */
    double scale = 1 / sqrt(size * lead);
    x[0] = copysign(lead, x[0]);
    for (int32_t i = 0; i < m - k; i++) x[i] *= scale;
    Step job = {.a = w, .norms = norms, .k = k, .m = m, .n = n, .row = wRow};
    parallel(chunks(n - k - 1, ROWS), 0.4 * (m - k) * (n - k), reflect_columns, &job);
  }
}
