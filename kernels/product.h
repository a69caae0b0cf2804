#ifndef STRUT_PRODUCT_H
#define STRUT_PRODUCT_H

#include "strut.h"

/* c = alpha·A·B + beta·c (+ bias); A is m×k, B k×n and c m×n, with any strides. */
#define PRODUCT(name, real)                                                    \
  typedef struct {                                                             \
    int32_t m, n, k;                                                           \
    real alpha, beta;                                                          \
    const real *a;                                                             \
    ptrdiff_t aRow, aCol;                                                      \
    const real *b;                                                             \
    ptrdiff_t bRow, bCol;                                                      \
    real *c;                                                                   \
    ptrdiff_t cRow, cCol;                                                      \
    const real *bias;                                                          \
    ptrdiff_t biasRow, biasCol;                                                \
  } name;
PRODUCT(Product_f32, float)
PRODUCT(Product_f64, double)
typedef Product_f32 Product;

/* One product on the calling thread, for kernels made of products. room is the size of scratch. */
void K(multiply)(const Product *p, float *scratch, int32_t room);

#endif
