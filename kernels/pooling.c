/* Windows of planes: rows rowStart[i] ≤ y < rowEnd[i], columns likewise. */
#include "vector.h"

typedef struct {
  int32_t height, width, outHeight, outWidth;
  double divisor;
  float *y, *x;
  int32_t *index, *rowStart, *rowEnd, *columnStart, *columnEnd;
} Job;

/* What a window's sum is divided by: the divisor, or where that is 0 the window's size. */
static double divisor_of(const Job *job, int32_t i, int32_t j) {
  return job->divisor ? job->divisor : (double)(job->rowEnd[i] - job->rowStart[i]) * (job->columnEnd[j] - job->columnStart[j]);
}

#define FOR_WINDOWS(i, j) \
  for (int32_t i = 0; i < job->outHeight; i++) \
    for (int32_t j = 0; j < job->outWidth; j++)
#define FOR_WINDOW(i, j, r, c) \
  for (int32_t r = job->rowStart[i]; r < job->rowEnd[i]; r++) \
    for (int32_t c = job->columnStart[j]; c < job->columnEnd[j]; c++)

static void average_plane(int32_t plane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  const float *x = job->x + (ptrdiff_t)plane * job->height * job->width;
  float *y = job->y + (ptrdiff_t)plane * job->outHeight * job->outWidth;
  FOR_WINDOWS(i, j) {
    double sum = 0;
    FOR_WINDOW(i, j, r, c) sum += x[r * job->width + c];
    *y++ = (float)(sum / divisor_of(job, i, j));
  }
}

static void average_backward_plane(int32_t plane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  float *dx = job->x + (ptrdiff_t)plane * job->height * job->width;
  const float *g = job->y + (ptrdiff_t)plane * job->outHeight * job->outWidth;
  memset(dx, 0, (size_t)job->height * job->width * sizeof(float));
  FOR_WINDOWS(i, j) {
    float share = (float)(*g++ / divisor_of(job, i, j));
    FOR_WINDOW(i, j, r, c) dx[r * job->width + c] += share;
  }
}

static void max_plane(int32_t plane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  const float *x = job->x + (ptrdiff_t)plane * job->height * job->width;
  ptrdiff_t at = (ptrdiff_t)plane * job->outHeight * job->outWidth;
  FOR_WINDOWS(i, j) {
    int32_t best = job->rowStart[i] * job->width + job->columnStart[j];
    FOR_WINDOW(i, j, r, c) {
      float v = x[r * job->width + c], top = x[best];
      if (v > top || (v != v && top == top)) best = r * job->width + c;
    }
    job->index[at] = best;
    job->y[at++] = x[best];
  }
}

static void max_backward_plane(int32_t plane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  float *dx = job->x + (ptrdiff_t)plane * job->width;
  memset(dx, 0, (size_t)job->width * sizeof(float));
  ptrdiff_t at = (ptrdiff_t)plane * job->outWidth;
  for (int32_t i = 0; i < job->outWidth; i++) dx[job->index[at + i]] += job->y[at + i];
}

void K(average_pool)(float *y, float *x, int32_t *rowStart, int32_t *rowEnd, int32_t *columnStart, int32_t *columnEnd, int32_t planes,
                     int32_t height, int32_t width, int32_t outHeight, int32_t outWidth, double divisor) {
  Job job = {height, width, outHeight, outWidth, divisor, y, x, NULL, rowStart, rowEnd, columnStart, columnEnd};
  parallel(planes, 1.0 * planes * height * width, average_plane, &job);
}

void K(average_pool_backward)(float *dx, float *g, int32_t *rowStart, int32_t *rowEnd, int32_t *columnStart, int32_t *columnEnd,
                              int32_t planes, int32_t height, int32_t width, int32_t outHeight, int32_t outWidth, double divisor) {
  Job job = {height, width, outHeight, outWidth, divisor, g, dx, NULL, rowStart, rowEnd, columnStart, columnEnd};
  parallel(planes, 1.0 * planes * height * width, average_backward_plane, &job);
}

void K(max_pool)(float *y, int32_t *index, float *x, int32_t *rowStart, int32_t *rowEnd, int32_t *columnStart, int32_t *columnEnd,
                 int32_t planes, int32_t height, int32_t width, int32_t outHeight, int32_t outWidth) {
  Job job = {height, width, outHeight, outWidth, 0, y, x, index, rowStart, rowEnd, columnStart, columnEnd};
  parallel(planes, 2.0 * planes * height * width, max_plane, &job);
}

/* dx | g index | planes size outSize */
void K(max_pool_backward)(float *dx, float *g, int32_t *index, int32_t planes, int32_t size, int32_t outSize) {
  Job job = {.width = size, .outWidth = outSize, .y = g, .x = dx, .index = index};
  parallel(planes, 0.5 * planes * (size + outSize), max_backward_plane, &job);
}
