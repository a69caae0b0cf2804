/* Packed integers of 1 to 8 bits, numbers in groups of one scale, and 8-bit blocks on a code book. */
#include "blocks.h"

enum { CODES = 8192, ROWS = 4 }; /* CODES numbers of any width end on a byte */

typedef struct {
  int32_t rows, cols, group, bits;
  uint8_t *packed, *zeros;
  float *x, *scales, *levels;
  int32_t *codes;
  const Book *book;
} Job;

/* The bytes up to the last one that holds a bit of the number are read. */
INLINE int32_t read_bits(const uint8_t *packed, ptrdiff_t at, int32_t bits) {
  int32_t shift = at & 7, word = packed[at >> 3];
  if (shift + bits > 8) word |= packed[(at >> 3) + 1] << 8;
  return (word >> shift) & ((1 << bits) - 1);
}

/* Sets bits of memory that is 0. */
INLINE void write_bits(uint8_t *packed, ptrdiff_t at, int32_t bits, int32_t code) {
  int32_t shift = at & 7, word = (code & ((1 << bits) - 1)) << shift;
  packed[at >> 3] |= (uint8_t)word;
  if (shift + bits > 8) packed[(at >> 3) + 1] |= (uint8_t)(word >> 8);
}

static void pack(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = least(CODES, job->cols - task * CODES);
  uint8_t *out = job->packed + (ptrdiff_t)task * (CODES / 8) * job->bits;
  memset(out, 0, (size_t)chunks(n * job->bits, 8));
  for (int32_t i = 0; i < n; i++) write_bits(out, (ptrdiff_t)i * job->bits, job->bits, job->codes[(ptrdiff_t)task * CODES + i]);
}

/* out codes | count bits */
void K(pack_bits)(uint8_t *out, int32_t *codes, int32_t count, int32_t bits) {
  Job job = {.cols = count, .bits = bits, .packed = out, .codes = codes};
  parallel(chunks(count, CODES), 1.5 * count, pack, &job);
}

static void unpack(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = least(CODES, job->cols - task * CODES);
  const uint8_t *packed = job->packed + (ptrdiff_t)task * (CODES / 8) * job->bits;
  for (int32_t i = 0; i < n; i++) job->codes[(ptrdiff_t)task * CODES + i] = read_bits(packed, (ptrdiff_t)i * job->bits, job->bits);
}

/* codes packed | count bits */
void K(unpack_bits)(int32_t *codes, uint8_t *packed, int32_t count, int32_t bits) {
  Job job = {.cols = count, .bits = bits, .packed = packed, .codes = codes};
  parallel(chunks(count, CODES), 1.0 * count, unpack, &job);
}

/* A code in 0…top; a quotient that is no number gives 0. */
INLINE int32_t code(double x, double scale, int32_t zero, int32_t top) {
  double quotient = scale > 0 ? rint(x / scale) + zero : zero;
  return quotient >= 0 ? quotient < top ? (int32_t)quotient : top : 0;
}

static void quantize(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t top = (1 << job->bits) - 1, middle = 1 << (job->bits - 1), groups = chunks(job->cols, job->group);
  ptrdiff_t row_bytes = ((ptrdiff_t)job->cols * job->bits + 7) / 8;
  for (int32_t r = task * ROWS; r < least(job->rows, (task + 1) * ROWS); r++) {
    uint8_t *packed = job->packed + r * row_bytes;
    memset(packed, 0, (size_t)row_bytes);
    for (int32_t g = 0; g < groups; g++) {
      ptrdiff_t at = (ptrdiff_t)r * groups + g;
      int32_t from = g * job->group, n = least(job->group, job->cols - from);
      const float *x = job->x + (ptrdiff_t)r * job->cols + from;
      double low = 0, high = 0, unordered = 0;
      for (int32_t i = 0; i < n; i++) {
        double value = x[i];
        low = value < low ? value : low;
        high = value > high ? value : high;
        if (value != value) unordered = value;
      }
      double range = job->zeros ? (high - low) / top : (high >= -low ? high : -low) / (middle - 1);
      job->scales[at] = unordered != 0 ? NAN : (float)range;
      int32_t zero = job->zeros ? code(-low, job->scales[at], 0, top) : middle;
      if (job->zeros) job->zeros[at] = (uint8_t)zero;
      for (int32_t i = 0; i < n; i++) write_bits(packed, (ptrdiff_t)(from + i) * job->bits, job->bits, code(x[i], job->scales[at], zero, top));
    }
  }
}

/* packed scales zeros? x | rows cols group bits */
void K(quantize_groups)(uint8_t *packed, float *scales, uint8_t *zeros, float *x, int32_t rows, int32_t cols, int32_t group, int32_t bits) {
  Job job = {.rows = rows, .cols = cols, .group = group, .bits = bits, .packed = packed, .zeros = zeros, .x = x, .scales = scales};
  parallel(chunks(rows, ROWS), 4.0 * rows * cols, quantize, &job);
}

static void dequantize(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t groups = chunks(job->cols, job->group);
  ptrdiff_t row_bytes = ((ptrdiff_t)job->cols * job->bits + 7) / 8;
  for (int32_t r = task * ROWS; r < least(job->rows, (task + 1) * ROWS); r++)
    for (int32_t g = 0; g < groups; g++) {
      ptrdiff_t at = (ptrdiff_t)r * groups + g;
      const uint8_t *packed = job->packed + r * row_bytes;
      int32_t from = g * job->group, n = least(job->group, job->cols - from);
      int32_t zero = job->zeros ? job->zeros[at] : 1 << (job->bits - 1);
      float scale = job->scales[at], *y = job->x + (ptrdiff_t)r * job->cols + from;
      if (job->bits == 8)
        for (int32_t i = 0; i < n; i++) y[i] = (float)(packed[from + i] - zero) * scale;
      else if (job->bits == 4)
        for (int32_t i = 0; i < n; i++) y[i] = (float)((packed[(from + i) >> 1] >> ((from + i) % 2 * 4) & 15) - zero) * scale;
      else
        for (int32_t i = 0; i < n; i++) y[i] = (float)(read_bits(packed, (ptrdiff_t)(from + i) * job->bits, job->bits) - zero) * scale;
    }
}

/* out packed scales zeros? | rows cols group bits */
void K(dequantize_groups)(float *out, uint8_t *packed, float *scales, uint8_t *zeros, int32_t rows, int32_t cols, int32_t group, int32_t bits) {
  Job job = {.rows = rows, .cols = cols, .group = group, .bits = bits, .packed = packed, .zeros = zeros, .x = out, .scales = scales};
  parallel(chunks(rows, ROWS), 1.0 * rows * cols, dequantize, &job);
}

static void quantize_block(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  ptrdiff_t at = (ptrdiff_t)task * job->group;
  int32_t n = least(job->group, job->cols - (int32_t)at);
  job->scales[task] = largest_size(job->x + at, n);
  encode_block(job->packed + at, job->x + at, n, job->scales[task], job->book);
}

/* codes largest x levels | count block */
void K(quantize_blocks)(uint8_t *codes, float *largest, float *x, float *levels, int32_t count, int32_t block) {
  Book book = book_of(levels);
  Job job = {.cols = count, .group = block, .packed = codes, .scales = largest, .x = x, .book = &book};
  parallel(chunks(count, block), 4.0 * count, quantize_block, &job);
}

static void dequantize_block(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  ptrdiff_t at = (ptrdiff_t)task * job->group;
  decode_block(job->x + at, job->packed + at, least(job->group, job->cols - (int32_t)at), job->scales[task], job->levels);
}

/* out codes largest levels | count block */
void K(dequantize_blocks)(float *out, uint8_t *codes, float *largest, float *levels, int32_t count, int32_t block) {
  Job job = {.cols = count, .group = block, .packed = codes, .scales = largest, .x = out, .levels = levels};
  parallel(chunks(count, block), 1.0 * count, dequantize_block, &job);
}
