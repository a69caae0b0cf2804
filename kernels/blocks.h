/* Blocks of 8-bit numbers on a code book of 256 ascending levels, each block with its largest |x|. */
#ifndef STRUT_BLOCKS_H
#define STRUT_BLOCKS_H

#include "vector.h"

/* A float's sign, exponent and upper seven bits of its fraction name its bin: from 2^-24, below which all share one, to 1. */
enum { LOWEST_BIN = 103 << 7, BINS = (24 << 7) + 1, CHUNK_OF_CODES = 256 };

/* The middles between levels, and how many of them lie below each bin of numbers above and below 0. */
typedef struct {
  float middles[256];
  uint8_t start[2][BINS];
} Book;

INLINE float bin_edge(int32_t bin) {
  uint32_t bits = (uint32_t)(bin + LOWEST_BIN) << 16;
  float edge;
  memcpy(&edge, &bits, sizeof edge);
  return bin ? edge : 0;
}

INLINE Book book_of(const float *levels) {
  Book book;
  for (int i = 0; i < 255; i++) book.middles[i] = (levels[i] + levels[i + 1]) * 0.5f;
  book.middles[255] = INFINITY;
  int32_t below = 0;
  for (int32_t i = -BINS; i < BINS; i++) {
    int32_t bin = i < 0 ? -1 - i : i;
    float edge = i < 0 ? -bin_edge(bin + 1) : bin_edge(bin);
    while (book.middles[below] < edge) below++;
    book.start[i < 0][bin] = (uint8_t)below;
  }
  return book;
}

/* How many middles lie below a number of [-1, 1]; 0 for NaN. */
INLINE uint8_t code_in(const Book *book, float wanted) {
  uint32_t bits;
  memcpy(&bits, &wanted, sizeof bits);
  int32_t bin = most(0, (int32_t)((bits & 0x7fffffff) >> 16) - LOWEST_BIN);
  if (bin >= BINS) return 0;
  int32_t code = book->start[bits >> 31][bin];
  code += wanted > book->middles[code];
  while (wanted > book->middles[code]) code++;
  return (uint8_t)code;
}

INLINE void widen_top(vf *top, vi *unordered, vf x) {
  *top = vmax(vabs(x), *top);
  *unordered |= x != x;
}

/* The largest |x|, NaN if any x is. */
INLINE float largest_size(const float *x, int32_t n) {
  vf top = {0};
  vi unordered = {0};
  int32_t i = 0;
  for (; i + W <= n; i += W) widen_top(&top, &unordered, load(x + i));
  if (i < n) widen_top(&top, &unordered, load_part(x + i, n - i));
  float all = 0;
  for (int lane = 0; lane < W; lane++) {
    if (unordered[lane]) return NAN;
    all = top[lane] > all ? top[lane] : all;
  }
  return all;
}

/* Codes of the levels nearest to x / largest, of two equally near the lower. */
INLINE void encode_block(uint8_t *codes, const float *x, int32_t n, float largest, const Book *book) {
  float wanted[CHUNK_OF_CODES] = {0};
  for (int32_t from = 0; from < n; from += CHUNK_OF_CODES) {
    int32_t count = least(CHUNK_OF_CODES, n - from), i = 0;
    if (largest > 0) {
      for (; i + W <= count; i += W) store(wanted + i, load(x + from + i) / largest);
      for (; i < count; i++) wanted[i] = x[from + i] / largest;
    }
    for (i = 0; i < count; i++) codes[from + i] = code_in(book, wanted[i]);
  }
}

INLINE void decode_block(float *x, const uint8_t *codes, int32_t n, float largest, const float *levels) {
  for (int32_t i = 0; i < n; i++) x[i] = levels[codes[i]] * largest;
}

#endif
