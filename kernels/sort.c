/* Order along rows. An element is a 64-bit word, its rank above its place, so that all words differ and ties go by place. */
#include "vector.h"

enum { FEW = 48, SOME = 2048, SPARE = 256 };

typedef struct {
  int32_t rows, n, k, down, lanes;
  float *values, *x;
  int32_t *index;
  uint64_t *scratch;
} Job;

static const uint32_t LAST = 0xffffffff; /* NaN, in both directions */

/* Whole numbers that are ordered as the floats are; −0 equals 0. */
INLINE uint32_t rank_of(float x, int32_t down) {
  uint32_t bits;
  x += 0.f;
  memcpy(&bits, &x, sizeof bits);
  uint32_t up = bits ^ (-(bits >> 31) | 0x80000000);
  return x != x ? LAST : down ? ~up : up;
}

INLINE uint64_t word_of(float x, int32_t place, int32_t down) { return (uint64_t)rank_of(x, down) << 32 | (uint32_t)place; }

/* The element of a word: from its rank, or from its row where the rank does not tell which zero or NaN it was. */
INLINE float element(uint64_t word, const float *row, int32_t down) {
  uint32_t rank = (uint32_t)(word >> 32), up = down ? ~rank : rank;
  if (rank == LAST || up == 0x80000000) return row[(uint32_t)word];
  uint32_t bits = up ^ (up >> 31 ? 0x80000000 : 0xffffffff);
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static void insertion_sort(uint64_t *words, int32_t n) {
  for (int32_t i = 1; i < n; i++) {
    uint64_t word = words[i];
    int32_t j = i;
    for (; j > 0 && words[j - 1] > word; j--) words[j] = words[j - 1];
    words[j] = word;
  }
}

/* Radix sort by the rank, from its lowest digit up; words come in order of their places. Returns which buffer holds the result. */
INLINE uint64_t *radix_sort(uint64_t *words, uint64_t *other, int32_t n, const int32_t bits, const int32_t passes) {
  int32_t count[4][256] = {0};
  uint32_t mask = (1u << bits) - 1;
  for (int32_t i = 0; i < n; i++)
    for (int32_t pass = 0; pass < passes; pass++) count[pass][words[i] >> (32 + pass * bits) & mask]++;
  for (int32_t pass = 0; pass < passes; pass++) {
    int32_t shift = 32 + pass * bits, at = 0, *next = count[pass];
    if (next[words[0] >> shift & mask] == n) continue;
    for (uint32_t digit = 0; digit <= mask; digit++) {
      int32_t here = next[digit];
      next[digit] = at;
      at += here;
    }
    for (int32_t i = 0; i < n; i++) other[next[words[i] >> shift & mask]++] = words[i];
    uint64_t *swap = words;
    words = other;
    other = swap;
  }
  return words;
}

static uint64_t *sort_words(uint64_t *words, uint64_t *other, int32_t n) {
  if (n > FEW) return radix_sort(words, other, n, 8, 4);
  insertion_sort(words, n);
  return words;
}

static void sort_lane(int32_t lane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = job->n;
  uint64_t *words = job->scratch + (ptrdiff_t)lane * 2 * n;
  for (int32_t r = lane; r < job->rows; r += job->lanes) {
    const float *x = job->x + (ptrdiff_t)r * n;
    for (int32_t i = 0; i < n; i++) words[i] = word_of(x[i], i, job->down);
    const uint64_t *sorted = sort_words(words, words + n, n);
    for (int32_t i = 0; i < n; i++) {
      job->values[(ptrdiff_t)r * n + i] = element(sorted[i], x, job->down);
      job->index[(ptrdiff_t)r * n + i] = (int32_t)(uint32_t)sorted[i];
    }
  }
}

/* values index | x scratch | rows n down lanes */
void K(sort_rows)(float *values, int32_t *index, float *x, double *scratch, int32_t rows, int32_t n, int32_t down, int32_t lanes) {
  Job job = {.rows = rows, .n = n, .down = down, .lanes = lanes, .values = values, .x = x, .index = index, .scratch = (uint64_t *)scratch};
  if (n > 0) parallel(least(lanes, rows), 10.0 * rows * n, sort_lane, &job);
}

/* Keeps the first k of the words: collects those before the last of the k so far, and sorts when the buffer is full. */
static const uint64_t *top_words(const float *x, uint64_t *words, int32_t n, int32_t k, int32_t down) {
  enum { BLOCK = 64 };
  int32_t room = k + k + SPARE, held = 0;
  uint64_t *other = words + room;
  uint32_t bar = LAST;
  float edge = down ? -INFINITY : INFINITY;
  int32_t open = 1; /* nothing can be passed over yet */
  for (int32_t from = 0; from < n; from += BLOCK) {
    int32_t to = least(n, from + BLOCK), any = open;
    if (down)
      for (int32_t i = from; i < to; i++) any |= x[i] > edge;
    else
      for (int32_t i = from; i < to; i++) any |= x[i] < edge;
    if (!any) continue;
    if (held + BLOCK > room) {
      uint64_t *sorted = sort_words(words, other, held);
      if (sorted != words) other = words, words = sorted;
      held = k;
      bar = (uint32_t)(words[k - 1] >> 32);
      open = bar == LAST;
      edge = element(words[k - 1], x, down);
    }
    for (int32_t i = from; i < to; i++) {
      uint32_t rank = rank_of(x[i], down);
      words[held] = (uint64_t)rank << 32 | (uint32_t)i;
      held += open || rank < bar;
    }
  }
  return sort_words(words, other, held);
}

static void top_lane(int32_t lane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t n = job->n, k = job->k;
  for (int32_t r = lane; r < job->rows; r += job->lanes) {
    const float *x = job->x + (ptrdiff_t)r * n;
    const uint64_t *first = top_words(x, job->scratch + (ptrdiff_t)lane * 2 * (2 * k + SPARE), n, k, job->down);
    for (int32_t i = 0; i < k; i++) {
      job->values[(ptrdiff_t)r * k + i] = element(first[i], x, job->down);
      job->index[(ptrdiff_t)r * k + i] = (int32_t)(uint32_t)first[i];
    }
  }
}

/* values index | x scratch | rows n k down lanes */
void K(top_rows)(float *values, int32_t *index, float *x, double *scratch, int32_t rows, int32_t n, int32_t k, int32_t down, int32_t lanes) {
  Job job = {.rows = rows, .n = n, .k = k, .down = down, .lanes = lanes, .values = values, .x = x, .index = index, .scratch = (uint64_t *)scratch};
  if (k > 0) parallel(least(lanes, rows), 2.0 * rows * n, top_lane, &job);
}

/* How often each digit occurs among the ranks whose higher bits are `prefix`; four tables, so that equal neighbours do not wait. */
static void count_digits(int32_t count[1 << 11], const float *x, int32_t n, int32_t down, uint32_t prefix, int32_t shift, int32_t bits) {
  int32_t part[4][1 << 11] = {0};
  uint32_t mask = (1u << bits) - 1;
  int32_t above = shift + bits;
  for (int32_t i = 0; i < n; i++) {
    uint32_t rank = rank_of(x[i], down);
    if (above == 32 || rank >> above == prefix) part[i & 3][rank >> shift & mask]++;
  }
  for (uint32_t digit = 0; digit <= mask; digit++) count[digit] = part[0][digit] + part[1][digit] + part[2][digit] + part[3][digit];
}

/* The word with k words before it, by its rank's digits from the highest down. */
static uint64_t kth_word(const float *x, int32_t n, int32_t k, int32_t down) {
  static const int32_t bits[3] = {11, 11, 10};
  int32_t count[1 << 11], shift = 32;
  uint32_t prefix = 0;
  for (int32_t level = 0; level < 3; level++) {
    shift -= bits[level];
    count_digits(count, x, n, down, prefix, shift, bits[level]);
    uint32_t digit = 0;
    while (k >= count[digit]) k -= count[digit++];
    prefix = prefix << bits[level] | digit;
  }
  int32_t at = -1;
  while (k >= 0)
    if (rank_of(x[++at], down) == prefix) k--;
  return (uint64_t)prefix << 32 | (uint32_t)at;
}

static void kth_row(int32_t r, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  const float *x = job->x + (ptrdiff_t)r * job->n;
  uint64_t word;
  if (job->n > SOME) word = kth_word(x, job->n, job->k, job->down);
  else {
    uint64_t words[2 * SOME];
    for (int32_t i = 0; i < job->n; i++) words[i] = word_of(x[i], i, job->down);
    word = sort_words(words, words + SOME, job->n)[job->k];
  }
  job->index[r] = (int32_t)(uint32_t)word;
  job->values[r] = x[job->index[r]];
}

/* values index | x | rows n k down */
void K(kth_rows)(float *values, int32_t *index, float *x, int32_t rows, int32_t n, int32_t k, int32_t down) {
  Job job = {.rows = rows, .n = n, .k = k, .down = down, .values = values, .x = x, .index = index};
  parallel(rows, 4.0 * rows * n, kth_row, &job);
}
