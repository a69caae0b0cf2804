/* Patches of images as columns, and their sum back into images. */
#include "vector.h"

typedef struct {
  int32_t height, width, outHeight, outWidth, kernelHeight, kernelWidth, strideY, strideX, paddingY, paddingX, dilationY, dilationX;
  float *columns, *x;
} Job;

/* Where output column `ox` of kernel column `kx` reads is inside of the image for from ≤ ox < to. */
static void inside(const Job *job, int32_t kx, int32_t *from, int32_t *to) {
  int32_t shift = job->paddingX - kx * job->dilationX;
  *from = least(job->outWidth, most(0, chunks(most(0, shift), job->strideX)));
  *to = most(*from, least(job->outWidth, chunks(most(0, job->width + shift), job->strideX)));
}

static void unfold_plane(int32_t plane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  const float *x = job->x + (ptrdiff_t)plane * job->height * job->width;
  float *to = job->columns + (ptrdiff_t)plane * job->kernelHeight * job->kernelWidth * job->outHeight * job->outWidth;
  for (int32_t ky = 0; ky < job->kernelHeight; ky++)
    for (int32_t kx = 0; kx < job->kernelWidth; kx++) {
      int32_t start, end;
      inside(job, kx, &start, &end);
      for (int32_t oy = 0; oy < job->outHeight; oy++, to += job->outWidth) {
        int32_t y = oy * job->strideY - job->paddingY + ky * job->dilationY;
        if (y < 0 || y >= job->height) {
          memset(to, 0, (size_t)job->outWidth * sizeof(float));
          continue;
        }
        const float *row = x + (ptrdiff_t)y * job->width - job->paddingX + kx * job->dilationX;
        for (int32_t ox = 0; ox < start; ox++) to[ox] = 0;
        if (job->strideX == 1)
          for (int32_t ox = start; ox < end; ox++) to[ox] = row[ox];
        else
          for (int32_t ox = start; ox < end; ox++) to[ox] = row[(ptrdiff_t)ox * job->strideX];
        for (int32_t ox = end; ox < job->outWidth; ox++) to[ox] = 0;
      }
    }
}

static void fold_plane(int32_t plane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  float *x = job->x + (ptrdiff_t)plane * job->height * job->width;
  const float *from = job->columns + (ptrdiff_t)plane * job->kernelHeight * job->kernelWidth * job->outHeight * job->outWidth;
  memset(x, 0, (size_t)job->height * job->width * sizeof(float));
  for (int32_t ky = 0; ky < job->kernelHeight; ky++)
    for (int32_t kx = 0; kx < job->kernelWidth; kx++) {
      int32_t start, end;
      inside(job, kx, &start, &end);
      for (int32_t oy = 0; oy < job->outHeight; oy++, from += job->outWidth) {
        int32_t y = oy * job->strideY - job->paddingY + ky * job->dilationY;
        if (y < 0 || y >= job->height) continue;
        float *row = x + (ptrdiff_t)y * job->width - job->paddingX + kx * job->dilationX;
        if (job->strideX == 1)
          for (int32_t ox = start; ox < end; ox++) row[ox] += from[ox];
        else
          for (int32_t ox = start; ox < end; ox++) row[(ptrdiff_t)ox * job->strideX] += from[ox];
      }
    }
}

#define GEOMETRY                                                                                                                         \
  int32_t batch, int32_t channels, int32_t height, int32_t width, int32_t outHeight, int32_t outWidth, int32_t kernelHeight,             \
      int32_t kernelWidth, int32_t strideY, int32_t strideX, int32_t paddingY, int32_t paddingX, int32_t dilationY, int32_t dilationX
#define JOB {height, width, outHeight, outWidth, kernelHeight, kernelWidth, strideY, strideX, paddingY, paddingX, dilationY, dilationX, columns, x}
#define COST (0.3 * batch * channels * kernelHeight * kernelWidth * outHeight * outWidth)

void K(unfold)(float *columns, float *x, GEOMETRY) {
  Job job = JOB;
  parallel(batch * channels, COST, unfold_plane, &job);
}

void K(fold)(float *x, float *columns, GEOMETRY) {
  Job job = JOB;
  parallel(batch * channels, COST, fold_plane, &job);
}
