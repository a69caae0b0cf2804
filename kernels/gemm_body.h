/* Included by gemm.c with REAL, NAME, VEC, FMA, LANES, FULL_ROWS and SHAPES set. */

typedef struct {
  REAL *c;
  ptrdiff_t cRow, cCol;
  REAL alpha, beta;
  const REAL *bias;
  ptrdiff_t biasRow, biasCol;
  int32_t valid;
} NAME(Out);

/*
 * rows×(vectors·lanes) results in registers: sums over k, then the epilogue. Only `valid` columns are stored.
 * a steps by aRow and aCol, b by bRow with its columns side by side.
 */
#define TILE_BODY(rows, vectors, lanes)                                                                                     \
  int whole = out->valid == vectors * lanes && out->cCol == 1 && (!out->bias || out->biasCol == 1);                         \
  VEC(lanes) acc[rows][vectors];                                                                                            \
  UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = (VEC(lanes)){0};               \
  if (whole) UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++)         \
    __builtin_prefetch(out->c + i * out->cRow + v * lanes);                                                                 \
  for (int32_t p = 0; p < k; p++) {                                                                                         \
    VEC(lanes) right[vectors];                                                                                              \
    UNROLL for (int v = 0; v < vectors; v++) right[v] = *(const VEC_ANY(lanes) *)(b + (size_t)(v * lanes));                 \
    UNROLL for (int i = 0; i < rows; i++) {                                                                                 \
      VEC(lanes) left = a[(size_t)(i * aRow)] - (VEC(lanes)){0};                                                            \
      UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = FMA(lanes)(left, right[v], acc[i][v]);                           \
    }                                                                                                                       \
    a += aCol;                                                                                                              \
    b += bRow;                                                                                                              \
  }                                                                                                                         \
  REAL alpha = out->alpha, beta = out->beta;                                                                                \
  const REAL *bias = out->bias;                                                                                             \
  if (whole) {                                                                                      \
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) {                                        \
      VEC_ANY(lanes) *c = (VEC_ANY(lanes) *)(out->c + i * out->cRow + v * lanes);                                           \
      VEC(lanes) x = alpha * acc[i][v];                                                                                     \
      if (beta != 0) x += beta * *c;                                                                                        \
      if (bias) x += *(const VEC_ANY(lanes) *)(bias + v * lanes);                                                           \
      *c = x;                                                                                                               \
    }                                                                                                                       \
    return;                                                                                                                 \
  }                                                                                                                         \
  REAL flat[rows][vectors * lanes];                                                                                         \
  UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++)                                            \
    *(VEC_ANY(lanes) *)&flat[i][v * lanes] = acc[i][v];                                                                     \
  for (int i = 0; i < rows; i++)                                                                                            \
    for (int32_t j = 0; j < least(out->valid, vectors * lanes); j++) {                                                      \
      REAL *c = out->c + i * out->cRow + j * out->cCol, x = alpha * flat[i][j];                                                         \
      if (beta != 0) x += beta * *c;                                                                                        \
      if (bias) x += bias[i * out->biasRow + j * out->biasCol];                                                             \
      *c = x;                                                                                                               \
    }

typedef void NAME(Tile)(int32_t k, const REAL *a, ptrdiff_t aRow, ptrdiff_t aCol, const REAL *b, ptrdiff_t bRow, const NAME(Out) *out);

#define TILE_PAIR(rows, vectors, lanes)                                                                                      \
  static void NAME(strided_##rows##x##vectors##x##lanes)(int32_t k, const REAL *a, ptrdiff_t aRow, ptrdiff_t aCol,           \
                                                         const REAL *b, ptrdiff_t bRow, const NAME(Out) *out) {              \
    TILE_BODY(rows, vectors, lanes)                                                                                          \
  }                                                                                                                          \
  static void NAME(packed_##rows##x##vectors##x##lanes)(int32_t k, const REAL *a, ptrdiff_t aRow_, ptrdiff_t aCol_,          \
                                                        const REAL *b, ptrdiff_t bRow_, const NAME(Out) *out) {              \
    enum { aRow = 1, aCol = rows, bRow = vectors * lanes };                                                                  \
    (void)aRow_, (void)aCol_, (void)bRow_;                                                                                   \
    TILE_BODY(rows, vectors, lanes)                                                                                          \
  }
#define TILES_4(v, l) TILE_PAIR(1, v, l) TILE_PAIR(2, v, l) TILE_PAIR(4, v, l)
#define TILES_5(v, l) TILES_4(v, l) TILE_PAIR(5, v, l)
#define TILES_8(v, l) TILES_4(v, l) TILE_PAIR(8, v, l)
#define TILES_12(v, l) TILES_8(v, l) TILE_PAIR(12, v, l)
#define TILES(index, v, l, most) TILES_##most(v, l)
SHAPES(TILES)

/* Rows of a tile by index: 1, 2, 4, 8, 12, 5. */
#define ENTRY_4(kind, v, l) NAME(kind##_1x##v##x##l), NAME(kind##_2x##v##x##l), NAME(kind##_4x##v##x##l)
#define ENTRY_5(kind, v, l) ENTRY_4(kind, v, l), [5] = NAME(kind##_5x##v##x##l)
#define ENTRY_8(kind, v, l) ENTRY_4(kind, v, l), NAME(kind##_8x##v##x##l)
#define ENTRY_12(kind, v, l) ENTRY_8(kind, v, l), NAME(kind##_12x##v##x##l)
#define STRIDED_ENTRY(index, v, l, most) {ENTRY_##most(strided, v, l)},
#define PACKED_ENTRY(index, v, l, most) {ENTRY_##most(packed, v, l)},
#define WIDTH_ENTRY(index, v, l, most) v * l,
#define ROWS_ENTRY(index, v, l, most) most,
static NAME(Tile) *const NAME(strided_tiles)[][6] = {SHAPES(STRIDED_ENTRY)};
static NAME(Tile) *const NAME(packed_tiles)[][6] = {SHAPES(PACKED_ENTRY)};
static const int32_t NAME(widths)[] = {SHAPES(WIDTH_ENTRY)};
static const int32_t NAME(heights)[] = {SHAPES(ROWS_ENTRY)};
enum { NAME(SHAPE_COUNT) = sizeof NAME(widths) / sizeof *NAME(widths) };

/* The widest shape that the columns left can fill, or the narrowest one. */
INLINE int32_t NAME(shape_for)(int32_t left) {
  int32_t s = 0;
  while (s < NAME(SHAPE_COUNT) - 1 && NAME(widths)[s] > left) s++;
  return s;
}

INLINE void NAME(pack_run)(REAL *to, const int32_t width, int32_t k, const REAL *from, ptrdiff_t along) {
  for (int32_t p = 0; p < k; p++, to += width, from += along) memcpy(to, from, (size_t)width * sizeof(REAL));
}

/* to[p·width + j] = from[p·along + j·across] for j < valid, 0 beyond: a panel of B, or (rows for columns) of A. */
static void NAME(pack)(REAL *to, int32_t width, int32_t valid, int32_t k, const REAL *from, ptrdiff_t along, ptrdiff_t across) {
  if (valid < width) memset(to, 0, (size_t)width * k * sizeof(REAL));
  else if (across == 1) {
    switch (width) {
      case 32: NAME(pack_run)(to, 32, k, from, along); return;
      case 24: NAME(pack_run)(to, 24, k, from, along); return;
      case 16: NAME(pack_run)(to, 16, k, from, along); return;
      case 12: NAME(pack_run)(to, 12, k, from, along); return;
      case 8: NAME(pack_run)(to, 8, k, from, along); return;
      case 5: NAME(pack_run)(to, 5, k, from, along); return;
      case 4: NAME(pack_run)(to, 4, k, from, along); return;
    }
  }
  int32_t j = 0;
  if (along == 1)
    for (; j + TURN <= valid; j += TURN) {
      int32_t p = 0;
      for (; p + TURN <= k; p += TURN) NAME(turn)(to + p * width + j, width, from + p + j * across, across);
      for (; p < k; p++)
        for (int32_t i = 0; i < TURN; i++) to[p * width + j + i] = from[p + (j + i) * across];
    }
  for (; j < valid; j++)
    for (int32_t p = 0; p < k; p++) to[p * width + j] = from[p * along + j * across];
}

/*
 * Depth of one pass over k. It decides the order of additions, so it depends on the shape of the whole product alone.
 * Small products, where memory costs nothing, add short sums: their rounding is what a small model's training shows.
 */
INLINE int32_t NAME(depth)(int32_t k, double work) {
  return k == 0 ? 0 : chunks(k, chunks(k, work <= SHORT_SUMS ? SHORT_DEPTH : DEPTH_BYTES / (int32_t)sizeof(REAL)));
}

/* Packs rows of A as panels of FULL_ROWS rows and what is left as smaller ones, one after another. */
static void NAME(pack_rows)(REAL *to, int32_t m, int32_t k, const REAL *a, ptrdiff_t aRow, ptrdiff_t aCol) {
  for (int32_t i = 0, rows; i < m; i += rows, to += rows * k) {
    rows = row_counts[row_index(m - i, FULL_ROWS)];
    NAME(pack)(to, rows, rows, k, a + i * aRow, aCol, aRow);
  }
}

/* Packs the panels of B, except those that a tile can read where they are. */
static void NAME(pack_columns)(REAL *to, int32_t n, int32_t k, const REAL *b, ptrdiff_t bRow, ptrdiff_t bCol, int direct) {
  for (int32_t j = 0, width; j < n; j += width) {
    width = NAME(widths)[NAME(shape_for)(n - j)];
    int32_t valid = least(width, n - j);
    if (!direct || valid < width) NAME(pack)(to + (ptrdiff_t)j * k, width, valid, k, b + j * bCol, bRow, bCol);
  }
}

/* The tiles of a block of m rows, for every panel of B. */
typedef struct {
  int32_t m, n, k;
  const REAL *a, *b, *packedA, *packedB;
  ptrdiff_t aRow, aCol, bRow;
  int direct;
} NAME(Block);

static void NAME(tiles)(const NAME(Block) *t, NAME(Out) out) {
  REAL *c = out.c;
  const REAL *bias = out.bias;
  for (int32_t j = 0, width; j < t->n; j += width) {
    int32_t shape = NAME(shape_for)(t->n - j);
    width = NAME(widths)[shape];
    out.valid = least(width, t->n - j);
    int direct = t->direct && out.valid == width;
    const REAL *b = direct ? t->b + j : t->packedB + (ptrdiff_t)j * t->k;
    ptrdiff_t bRow = direct ? t->bRow : width;
    for (int32_t i = 0, rows; i < t->m; i += rows) {
      int32_t r = row_index(t->m - i, t->packedA ? FULL_ROWS : NAME(heights)[shape]);
      rows = row_counts[r];
      out.c = c + i * out.cRow + j * out.cCol;
      out.bias = bias ? bias + i * out.biasRow + j * out.biasCol : NULL;
      if (!t->packedA) NAME(strided_tiles)[shape][r](t->k, t->a + i * t->aRow, t->aRow, t->aCol, b, bRow, &out);
      else if (direct) NAME(strided_tiles)[shape][r](t->k, t->packedA + (ptrdiff_t)i * t->k, 1, rows, b, bRow, &out);
      else NAME(packed_tiles)[shape][r](t->k, t->packedA + (ptrdiff_t)i * t->k, 1, rows, b, bRow, &out);
    }
  }
}

static void NAME(multiply)(const NAME(Product) *p, int32_t depth, REAL *scratch, int32_t room) {
  int32_t m = p->m, n = p->n;
  int packA = (double)m * n * p->k > SMALL && n > 2 * NAME(widths)[0];
  double bytes = (double)p->k * p->bRow * sizeof(REAL);
  int direct = p->bCol == 1 && (m <= FULL_ROWS || bytes <= (m <= 2 * FULL_ROWS ? NEAR_BYTES : 1 << 15));
  int32_t mStep = packA ? least(m, BLOCK_ROWS / FULL_ROWS * FULL_ROWS) : m;
  int32_t left = (room - (packA ? mStep * depth : 0)) / most(depth, 1);
  int32_t nStep = least(BLOCK_COLUMNS, left / NAME(widths)[0] * NAME(widths)[0]);
  REAL *packedB = scratch, *packedA = packA ? scratch + (ptrdiff_t)nStep * depth : NULL;
  int32_t from = 0;
  do {
    int32_t k = least(depth, p->k - from);
    int last = from + k >= p->k;
    for (int32_t j = 0; j < n; j += nStep) {
      NAME(Block) t = {.n = least(nStep, n - j), .k = k, .packedA = packedA, .packedB = packedB, .direct = direct};
      t.aRow = p->aRow, t.aCol = p->aCol, t.bRow = p->bRow;
      t.b = p->b + from * p->bRow + j * p->bCol;
      NAME(pack_columns)(packedB, t.n, k, t.b, p->bRow, p->bCol, direct);
      for (int32_t i = 0; i < m; i += mStep) {
        t.m = least(mStep, m - i);
        t.a = p->a + i * p->aRow + from * p->aCol;
        if (packA) NAME(pack_rows)(packedA, t.m, k, t.a, p->aRow, p->aCol);
        NAME(Out) out = {.c = p->c + i * p->cRow + j * p->cCol, .cRow = p->cRow, .cCol = p->cCol, .alpha = p->alpha};
        out.beta = from ? 1 : p->beta;
        out.bias = last && p->bias ? p->bias + i * p->biasRow + j * p->biasCol : NULL;
        out.biasRow = p->biasRow, out.biasCol = p->biasCol;
        NAME(tiles)(&t, out);
      }
    }
    from += k;
  } while (from < p->k);
}

INLINE void NAME(finish)(const NAME(Product) *p, int32_t i, int32_t j, REAL sum) {
  REAL *c = p->c + i * p->cRow + j, x = p->alpha * sum;
  if (p->beta != 0) x += p->beta * *c;
  if (p->bias) x += p->bias[j];
  *c = x;
}

/* One to three rows against columns of B that lie in memory: dot products. */
INLINE void NAME(dots)(const NAME(Product) *p, const int rows) {
  for (int32_t j = 0; j < p->n; j++) {
    const REAL *b = p->b + j * p->bCol;
    VEC(LANES) acc[3][2] = {0};
    int32_t q = 0;
    for (; q + 2 * LANES <= p->k; q += 2 * LANES)
      UNROLL for (int i = 0; i < rows; i++) UNROLL for (int u = 0; u < 2; u++) {
        const REAL *a = p->a + i * p->aRow + q + u * LANES;
        acc[i][u] = FMA(LANES)(*(const VEC_ANY(LANES) *)a, *(const VEC_ANY(LANES) *)(b + q + u * LANES), acc[i][u]);
      }
    for (int i = 0; i < rows; i++) {
      VEC(LANES) both = acc[i][0] + acc[i][1];
      REAL sum = 0;
      for (int lane = 0; lane < LANES; lane++) sum += both[lane];
      for (int32_t r = q; r < p->k; r++) sum += p->a[i * p->aRow + r] * b[r];
      NAME(finish)(p, i, j, sum);
    }
  }
}

/* One to three rows against rows of B that lie in memory: sums of rows, four at a time, some columns kept near. */
INLINE void NAME(sums)(const NAME(Product) *p, const int rows, REAL *acc) {
  for (int32_t from = 0; from < p->n; from += THIN_COLUMNS) {
    int32_t n = least(THIN_COLUMNS, p->n - from);
    memset(acc, 0, sizeof(REAL) * rows * THIN_COLUMNS);
    for (int32_t q = 0, step; q < p->k; q += step) {
      step = q + 4 <= p->k ? 4 : 1;
      const REAL *b = p->b + q * p->bRow + from, *a = p->a + q * p->aCol;
      int32_t j = 0;
      for (; j + LANES <= n; j += LANES)
        UNROLL for (int i = 0; i < rows; i++) {
          VEC_ANY(LANES) *to = (VEC_ANY(LANES) *)(acc + i * THIN_COLUMNS + j);
          VEC(LANES) x = *to;
          for (int32_t u = 0; u < step; u++)
            x = FMA(LANES)(a[i * p->aRow + u * p->aCol] - (VEC(LANES)){0}, *(const VEC_ANY(LANES) *)(b + u * p->bRow + j), x);
          *to = x;
        }
      for (; j < n; j++)
        for (int i = 0; i < rows; i++)
          for (int32_t u = 0; u < step; u++) acc[i * THIN_COLUMNS + j] += a[i * p->aRow + u * p->aCol] * b[u * p->bRow + j];
    }
    for (int i = 0; i < rows; i++)
      for (int32_t j = 0; j < n; j++) NAME(finish)(p, i, from + j, acc[i * THIN_COLUMNS + j]);
  }
}

enum { NAME(TILES), NAME(DOTS), NAME(SUMS) };

typedef struct {
  NAME(Product) p;
  ptrdiff_t aBatch, bBatch, cBatch;
  int32_t rows, cols, bands, stripes, depth, room, way;
  REAL *scratch;
} NAME(Job);

INLINE void NAME(thin)(const NAME(Product) *p, const int rows, int32_t way, REAL *scratch) {
  if (way == NAME(DOTS)) NAME(dots)(p, rows);
  else NAME(sums)(p, rows, scratch);
}

static void NAME(part)(int32_t task, int32_t slot, const void *data) {
  const NAME(Job) *job = data;
  int32_t band = task % job->bands, stripe = task / job->bands % job->stripes, t = task / job->bands / job->stripes;
  int32_t i = band * job->rows, j = stripe * job->cols;
  NAME(Product) p = job->p;
  p.m = least(job->rows, p.m - i);
  p.n = least(job->cols, p.n - j);
  p.a += t * job->aBatch + i * p.aRow;
  p.b += t * job->bBatch + j * p.bCol;
  p.c += t * job->cBatch + i * p.cRow + j * p.cCol;
  if (p.bias) p.bias += i * p.biasRow + j * p.biasCol;
  REAL *scratch = job->scratch + (ptrdiff_t)slot * job->room;
  if (job->way == NAME(TILES)) NAME(multiply)(&p, job->depth, scratch, job->room);
  else if (p.m == 1) NAME(thin)(&p, 1, job->way, scratch);
  else if (p.m == 2) NAME(thin)(&p, 2, job->way, scratch);
  else NAME(thin)(&p, 3, job->way, scratch);
}

/* n in even parts of at most `size`, each a multiple of `unit`. */
INLINE int32_t NAME(even)(int32_t n, int32_t size, int32_t unit) { return chunks(chunks(n, chunks(n, size)), unit) * unit; }

/*
 * Rows and columns of a task, for `wanted` tasks or more. Every band of rows packs all of B again, and every stripe all of A, so
 * the split with the least packing wins; stripes are never wider than what is packed at once, so that their part of c stays near.
 */
static void NAME(divide)(const NAME(Product) *p, int32_t wanted, int32_t *rows, int32_t *cols) {
  int32_t width = NAME(widths)[0], most_bands = chunks(p->m, 4 * FULL_ROWS), most_stripes = chunks(p->n, 4 * width);
  double best = INFINITY;
  for (int32_t bands = 1; bands <= least(wanted, most_bands); bands++) {
    int32_t stripes = most(least(chunks(wanted, bands), most_stripes), chunks(p->n, BLOCK_COLUMNS));
    double packed = (double)bands * p->n + (double)stripes * p->m;
    if (bands * stripes < wanted) packed *= 1 + (double)wanted / (bands * stripes);
    if (packed >= best) continue;
    best = packed;
    *rows = chunks(p->m, bands);
    *cols = chunks(p->n, stripes);
  }
}

/* The way depends on the shape alone, so the bits do not depend on threads; the split into tasks changes none. */
static void NAME(run)(NAME(Product) p, int32_t batch, int32_t aBatch, int32_t bBatch, int32_t cBatch, REAL *scratch, int32_t room) {
  if (batch == 0 || p.m == 0 || p.n == 0) return;
  int stacked = batch > 1 && bBatch == 0 && aBatch == p.m * p.aRow && cBatch == p.m * p.cRow;
  if (stacked) p.m *= batch, batch = 1;
  NAME(Job) job = {.aBatch = aBatch, .bBatch = bBatch, .cBatch = cBatch, .room = room, .scratch = scratch, .way = NAME(TILES)};
  if (p.m <= 3 && p.bRow == 1 && p.aCol == 1 && p.k >= LANES) job.way = NAME(DOTS);
  else if (p.m <= 3 && p.bCol == 1 && p.n >= LANES) job.way = NAME(SUMS);
  else if (p.m <= THIN && p.n > p.m && p.bRow == 1 && p.bCol != 1) {
    /* cᵀ = Bᵀ·Aᵀ reads B in place */
    p = (NAME(Product)){p.n, p.m, p.k, p.alpha, p.beta, p.b, p.bCol, p.bRow, p.a, p.aCol, p.aRow, p.c, p.cCol, p.cRow, p.bias, p.biasCol, p.biasRow};
    job.aBatch = bBatch, job.bBatch = aBatch;
  }
  double cost = 0.02 * batch * p.m * p.n * most(p.k, 4);
  int32_t width = NAME(widths)[0], rows = p.m, cols = p.n;
  if (cost >= 6000 && pool_slots() > 1) NAME(divide)(&p, chunks(4 * pool_slots(), batch), &rows, &cols);
  job.p = p;
  job.depth = NAME(depth)(p.k, (double)p.m * p.n * p.k);
  job.rows = least(p.m, NAME(even)(p.m, rows, FULL_ROWS));
  job.cols = least(p.n, NAME(even)(p.n, cols, width));
  job.bands = chunks(p.m, job.rows);
  job.stripes = chunks(p.n, job.cols);
  parallel(batch * job.bands * job.stripes, cost, NAME(part), &job);
}
