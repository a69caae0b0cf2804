/* Matrix products. gemm_body.h is the algorithm, once for f32 and once for f64; this file says what each processor likes. */
#include "vector.h"
#include "product.h"

#define VECTOR(type, name, lanes, bytes)                                        \
  typedef type name##x##lanes __attribute__((vector_size(bytes)));              \
  typedef type name##x##lanes##_any __attribute__((vector_size(bytes), aligned(sizeof(type)), may_alias));

#define PLAIN_FMA(v) \
  INLINE v fma_##v(v a, v b, v c) { return a * b + c; }
#define X86_FMA(v, intrinsic, native) \
  INLINE v fma_##v(v a, v b, v c) { return (v)intrinsic((native)a, (native)b, (native)c); }

VECTOR(float, f32, 4, 16)
VECTOR(double, f64, 2, 16)
#if defined(__AVX512F__) || defined(__AVX2__)
X86_FMA(f32x4, _mm_fmadd_ps, __m128)
X86_FMA(f64x2, _mm_fmadd_pd, __m128d)
VECTOR(float, f32, 8, 32)
VECTOR(double, f64, 4, 32)
X86_FMA(f32x8, _mm256_fmadd_ps, __m256)
X86_FMA(f64x4, _mm256_fmadd_pd, __m256d)
#elif defined(__ARM_NEON)
INLINE f32x4 fma_f32x4(f32x4 a, f32x4 b, f32x4 c) { return (f32x4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE f64x2 fma_f64x2(f64x2 a, f64x2 b, f64x2 c) { return (f64x2)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
PLAIN_FMA(f32x4)
PLAIN_FMA(f64x2)
#endif
#if defined(__AVX512F__)
VECTOR(float, f32, 16, 64)
VECTOR(double, f64, 8, 64)
X86_FMA(f32x16, _mm512_fmadd_ps, __m512)
X86_FMA(f64x8, _mm512_fmadd_pd, __m512d)
#endif

/* Transposes a square block: four by four floats, two by two doubles. */
INLINE void turn_f32(float *to, ptrdiff_t toRow, const float *from, ptrdiff_t fromRow) {
  f32x4 r0 = *(const f32x4_any *)from, r1 = *(const f32x4_any *)(from + fromRow);
  f32x4 r2 = *(const f32x4_any *)(from + 2 * fromRow), r3 = *(const f32x4_any *)(from + 3 * fromRow);
  f32x4 a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), b = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
  f32x4 c = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  *(f32x4_any *)to = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  *(f32x4_any *)(to + toRow) = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  *(f32x4_any *)(to + 2 * toRow) = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  *(f32x4_any *)(to + 3 * toRow) = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
INLINE void turn_f64(double *to, ptrdiff_t toRow, const double *from, ptrdiff_t fromRow) {
  f64x2 r0 = *(const f64x2_any *)from, r1 = *(const f64x2_any *)(from + fromRow);
  *(f64x2_any *)to = __builtin_shufflevector(r0, r1, 0, 2);
  *(f64x2_any *)(to + toRow) = __builtin_shufflevector(r0, r1, 1, 3);
}

#define UNROLL _Pragma("GCC unroll 16")

/* SMALL: multiplications below which A is read in place; up to SHORT_SUMS, sums have SHORT_DEPTH products. DEPTH_BYTES of k,
   BLOCK_ROWS of A and BLOCK_COLUMNS of B are packed at a time. THIN: rows of A that are still few. NEAR_BYTES:
   of B, which up to two tiles of rows read in place. */
enum { SMALL = 96 * 96 * 96, DEPTH_BYTES = 384 * 4, SHORT_DEPTH = 32, SHORT_SUMS = 160 * 160 * 160, BLOCK_ROWS = 192, BLOCK_COLUMNS = 512, THIN = 16, THIN_COLUMNS = 1024, NEAR_BYTES = 1 << 24 };

static const int32_t row_counts[] = {1, 2, 4, 8, 12, 5};
INLINE int32_t row_index(int32_t left, int32_t limit) {
  int32_t n = least(left, limit);
  if (limit == 5 && n == 5) return 5;
  return n >= 12 ? 4 : n >= 8 ? 3 : n >= 4 ? 2 : n >= 2 ? 1 : 0;
}

/*
 * Tiles: SHAPES(T) lists T(index of width, vectors, lanes, most rows). FULL_ROWS is the height of a packed panel of A.
 * Wide tiles come first; narrow ones serve the last columns and thin matrices.
 */
#define NAME(x) NAME_(x)
#define VEC(lanes) VEC_(lanes)
#define VEC_ANY(lanes) VEC_ANY_(lanes)
#define FMA(lanes) FMA_(lanes)

#define REAL float
#define NAME_(x) x##_f32
#define VEC_(lanes) f32x##lanes
#define VEC_ANY_(lanes) f32x##lanes##_any
#define FMA_(lanes) fma_f32x##lanes
#define TURN 4
#if defined(__AVX512F__)
#define FULL_ROWS 12
#define LANES 16
#define SHAPES(T) T(0, 2, 16, 12) T(1, 1, 16, 12) T(2, 1, 8, 12) T(3, 1, 4, 12)
#elif defined(__AVX2__)
#define FULL_ROWS 4
#define LANES 8
#define SHAPES(T) T(0, 3, 8, 4) T(1, 2, 8, 4) T(2, 1, 8, 12) T(3, 1, 4, 12)
#elif defined(__wasm__)
#define FULL_ROWS 5 /* engines leave 15 registers: 10 sums, 2 of B, 1 of A, 1 product */
#define LANES 4
#define SHAPES(T) T(0, 2, 4, 5) T(1, 1, 4, 5)
#else
#define FULL_ROWS 4
#define LANES 4
#define SHAPES(T) T(0, 2, 4, 4) T(1, 1, 4, 8)
#endif
#include "gemm_body.h"
#undef REAL
#undef NAME_
#undef VEC_
#undef VEC_ANY_
#undef FMA_
#undef TURN
#undef LANES
#undef SHAPES

#define REAL double
#define NAME_(x) x##_f64
#define VEC_(lanes) f64x##lanes
#define VEC_ANY_(lanes) f64x##lanes##_any
#define FMA_(lanes) fma_f64x##lanes
#define TURN 2
#if defined(__AVX512F__)
#define LANES 8
#define SHAPES(T) T(0, 2, 8, 12) T(1, 1, 8, 12) T(2, 1, 4, 12) T(3, 1, 2, 12)
#elif defined(__AVX2__)
#define LANES 4
#define SHAPES(T) T(0, 3, 4, 4) T(1, 2, 4, 4) T(2, 1, 4, 12) T(3, 1, 2, 12)
#elif defined(__wasm__)
#define LANES 2
#define SHAPES(T) T(0, 2, 2, 5) T(1, 1, 2, 5)
#else
#define LANES 2
#define SHAPES(T) T(0, 2, 2, 4) T(1, 1, 2, 8)
#endif
#include "gemm_body.h"

void K(multiply)(const Product *p, float *scratch, int32_t room) { multiply_f32(p, depth_f32(p->k, INFINITY), scratch, room); }

void K(gemm)(int32_t batch, int32_t m, int32_t n, int32_t k, double alpha, float *a, int32_t aBatch, int32_t aRow, int32_t aCol, float *b,
             int32_t bBatch, int32_t bRow, int32_t bCol, double beta, float *c, int32_t cBatch, int32_t cRow, float *bias, float *scratch) {
  Product_f32 p = {m, n, k, (float)alpha, (float)beta, a, aRow, aCol, b, bRow, bCol, c, cRow, 1, bias, 0, 1};
  run_f32(p, batch, aBatch, bBatch, cBatch, scratch, slot_floats());
}

void K(gemm_f64)(int32_t batch, int32_t m, int32_t n, int32_t k, double alpha, double *a, int32_t aBatch, int32_t aRow, int32_t aCol,
                 double *b, int32_t bBatch, int32_t bRow, int32_t bCol, double beta, double *c, int32_t cBatch, int32_t cRow, double *bias,
                 float *scratch) {
  Product_f64 p = {m, n, k, alpha, beta, a, aRow, aCol, b, bRow, bCol, c, cRow, 1, bias, 0, 1};
  run_f64(p, batch, aBatch, bBatch, cBatch, (double *)scratch, slot_floats() / 2);
}
