typedef struct {
  REAL *a, *b;
  int32_t *info, *order;
  int32_t m, n, rhs, upper, unit;
  ptrdiff_t aBatch, aRow, aCol, bBatch, bRow, bCol;
} NAME(Solve);

static double NAME(inner)(const REAL *x, const REAL *y, int32_t n) {
  double sums[8] = {0};
  int32_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int32_t lane = 0; lane < 8; lane++) sums[lane] += (double)x[i + lane] * y[i + lane];
  for (; i < n; i++) sums[0] += (double)x[i] * y[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/* Row by row; info is 1 + the first row whose pivot is not above zero and finite, and the rows after it stay. */
static void NAME(factor)(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const NAME(Solve) *job = data;
  REAL *a = job->a + task * job->aBatch;
  job->info[task] = 0;
  for (int32_t i = 0; i < job->n; i++) {
    REAL *row = a + i * job->aRow;
    for (int32_t j = 0; j < i; j++) {
      const REAL *other = a + j * job->aRow;
      row[j] = (REAL)((row[j] - NAME(inner)(row, other, j)) / other[j]);
    }
    double pivot = row[i] - NAME(inner)(row, row, i);
    for (int32_t j = i + 1; j < job->n; j++) row[j] = 0;
    if (!(pivot > 0 && pivot < INFINITY)) {
      job->info[task] = i + 1;
      return;
    }
    row[i] = (REAL)sqrt(pivot);
  }
}

/* a info | batch n aBatch aRow */
void EXPORT(cholesky)(REAL *a, int32_t *info, int32_t batch, int32_t n, int32_t aBatch, int32_t aRow) {
  NAME(Solve) job = {.a = a, .info = info, .n = n, .aBatch = aBatch, .aRow = aRow};
  parallel(batch, 0.1 * batch * n * n * n, NAME(factor), &job);
}

/* LANES right-hand sides of one matrix, or fewer at the end. */
static void NAME(substitute)(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const NAME(Solve) *job = data;
  int32_t n = job->n, groups = chunks(job->rhs, LANES), first = task % groups * LANES, lanes = least(LANES, job->rhs - first);
  const REAL *a = job->a + task / groups * job->aBatch;
  REAL *b = job->b + task / groups * job->bBatch + first * job->bCol;
  double x[MOST * LANES], row[MOST];
  for (int32_t step = 0; step < n; step++) {
    int32_t i = job->upper ? n - 1 - step : step;
    double *own = x + step * LANES;
    for (int32_t k = 0; k < step; k++) row[k] = a[i * job->aRow + (job->upper ? n - 1 - k : k) * job->aCol];
    for (int32_t lane = 0; lane < LANES; lane++) own[lane] = lane < lanes ? b[i * job->bRow + lane * job->bCol] : 0;
    vd sums[VECTORS] = {{0}};
    gather(sums, row, x, step);
    double pivot = job->unit ? 1 : a[i * (job->aRow + job->aCol)];
    EACH(v, VECTORS) *(vd_any *)(own + v * H) = (*(const vd_any *)(own + v * H) - sums[v]) / pivot;
    for (int32_t lane = 0; lane < lanes; lane++) b[i * job->bRow + lane * job->bCol] = (REAL)own[lane];
  }
}

/* a | b | batch n rhs | aBatch aRow aCol | bBatch bRow bCol | upper unit */
void EXPORT(triangular_solve)(REAL *a, REAL *b, int32_t batch, int32_t n, int32_t rhs, int32_t aBatch, int32_t aRow, int32_t aCol,
                              int32_t bBatch, int32_t bRow, int32_t bCol, int32_t upper, int32_t unit) {
  NAME(Solve) job = {.a = a, .b = b, .n = n, .rhs = rhs, .upper = upper, .unit = unit, .aBatch = aBatch, .aRow = aRow, .aCol = aCol, .bBatch = bBatch, .bRow = bRow, .bCol = bCol};
  parallel(batch * chunks(rhs, LANES), 0.1 * batch * rhs * n * n, NAME(substitute), &job);
}

/* Right-looking, a row at a time; info is 1 + the first column without a finite pivot other than zero, where it ends. */
static void NAME(eliminate)(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const NAME(Solve) *job = data;
  int32_t m = job->m, n = job->n, *order = job->order + task * m;
  REAL *a = job->a + task * job->aBatch;
  job->info[task] = 0;
  for (int32_t i = 0; i < m; i++) order[i] = i;
  for (int32_t k = 0; k < least(m, n); k++) {
    int32_t at = k;
    for (int32_t i = k + 1; i < m; i++)
      if (fabs(a[i * job->aRow + k]) > fabs(a[at * job->aRow + k])) at = i;
    REAL *own = a + k * job->aRow, *best = a + at * job->aRow;
    for (int32_t j = 0; at != k && j < n; j++) {
      REAL kept = own[j];
      own[j] = best[j];
      best[j] = kept;
    }
    int32_t kept = order[k];
    order[k] = order[at];
    order[at] = kept;
    if (!(fabs(own[k]) > 0 && fabs(own[k]) < INFINITY)) {
      if (!job->info[task]) job->info[task] = k + 1;
      continue;
    }
    for (int32_t i = k + 1; i < m; i++) {
      REAL *row = a + i * job->aRow, factor = row[k] /= own[k];
      for (int32_t j = k + 1; j < n; j++) row[j] -= factor * own[j];
    }
  }
}

/* a order info | batch m n aBatch aRow */
void EXPORT(lu)(REAL *a, int32_t *order, int32_t *info, int32_t batch, int32_t m, int32_t n, int32_t aBatch, int32_t aRow) {
  NAME(Solve) job = {.a = a, .order = order, .info = info, .m = m, .n = n, .aBatch = aBatch, .aRow = aRow};
  parallel(batch, 0.2 * batch * m * n * least(m, n), NAME(eliminate), &job);
}
