/* Small dense solves, many at a time or as blocks of large ones. solve_body.h is written once for f32 and once for f64; sums are f64. */
#include "vector.h"

enum { LANES = 16, VECTORS = LANES / H, MOST = 128 };
#define EACH(i, n) _Pragma("GCC unroll 8") for (int32_t i = 0; i < (n); i++)

/* The rows of n doubles before x_i, each times one number of a: sums += Σ_k a[k·step]·x[k·LANES …]. */
INLINE void gather(vd *sums, const double *a, const double *x, int32_t n) {
  vd odd[VECTORS] = {{0}};
  int32_t k = 0;
  for (; k + 2 <= n; k += 2, x += 2 * LANES) {
    EACH(v, VECTORS) sums[v] += *(const vd_any *)(x + v * H) * a[k];
    EACH(v, VECTORS) odd[v] += *(const vd_any *)(x + LANES + v * H) * a[k + 1];
  }
  if (k < n) EACH(v, VECTORS) sums[v] += *(const vd_any *)(x + v * H) * a[k];
  EACH(v, VECTORS) sums[v] += odd[v];
}

#define REAL float
#define NAME(x) x##_f32
#define EXPORT(x) K(x)
#include "solve_body.h"
#undef REAL
#undef NAME
#undef EXPORT

#define REAL double
#define NAME(x) x##_f64
#define EXPORT(x) K(x##_f64)
#include "solve_body.h"
