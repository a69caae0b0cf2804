/* Norms over channels: x is [batch, channels, inner]. */
#include "vector.h"

typedef struct {
  int32_t batch, channels, inner, moving;
  float *y, *x, *g, *mean, *scale, *w, *b, *dw, *db;
} Job;

#define FOR_ROWS(n, at) \
  for (int32_t n = 0; n < job->batch; n++) \
    for (ptrdiff_t at = ((ptrdiff_t)n * job->channels + channel) * job->inner, once = 1; once; once = 0)

/* Mean and (biased) variance of one channel, in two passes. */
static void moments(int32_t channel, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  double count = (double)job->batch * job->inner, total;
  Sum sum = {0};
  FOR_ROWS(n, at) {
    const float *x = job->x + at;
    int32_t i = 0;
    for (; i + W <= job->inner; i += W) sum_add(&sum, load(x + i));
    if (i < job->inner) sum_add(&sum, load_part(x + i, job->inner - i));
  }
  double mean = sum_total(&sum) / count, rest = 0;
  Sum squares = {0};
  FOR_ROWS(n, at) {
    const float *x = job->x + at;
    int32_t i = 0;
    for (; i + W <= job->inner; i += W) {
      vd a = low_half(load(x + i)) - mean, b = high_half(load(x + i)) - mean;
      squares.low += a * a;
      squares.high += b * b;
    }
    for (; i < job->inner; i++) rest += (x[i] - mean) * (x[i] - mean);
  }
  total = sum_total(&squares) + rest;
  job->mean[channel] = (float)mean;
  job->scale[channel] = (float)(total / count);
}

static void normalise(int32_t plane, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t channel = plane % job->channels;
  float mean = job->mean[channel], scale = job->scale[channel] * (job->w ? job->w[channel] : 1.f), shift = job->b ? job->b[channel] : 0.f;
  const float *x = job->x + (ptrdiff_t)plane * job->inner;
  float *y = job->y + (ptrdiff_t)plane * job->inner;
  for (int32_t i = 0; i < job->inner; i++) y[i] = (x[i] - mean) * scale + shift;
}

/* With h = (x − mean)·rstd: dw = Σ g⊙h, db = Σ g, dx = w·rstd·(g − db/n − h·dw/n); fixed statistics leave out both means. */
static void backward(int32_t channel, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  float mean = job->mean[channel], rstd = job->scale[channel], w = job->w ? job->w[channel] : 1.f;
  Sum plain = {0}, along = {0};
  FOR_ROWS(n, at) {
    const float *x = job->x + at, *g = job->g + at;
    int32_t i = 0;
    for (; i + W <= job->inner; i += W) {
      vf u = load(g + i);
      sum_add(&plain, u);
      sum_add(&along, u * ((load(x + i) - mean) * rstd));
    }
    if (i < job->inner) {
      vf u = load_part(g + i, job->inner - i);
      sum_add(&plain, u);
      sum_add(&along, u * ((load_part(x + i, job->inner - i) - mean) * rstd));
    }
  }
  double p = sum_total(&plain), q = sum_total(&along), count = (double)job->batch * job->inner;
  if (job->dw) job->dw[channel] = (float)q;
  if (job->db) job->db[channel] = (float)p;
  float shift = job->moving ? (float)(p / count) : 0.f, slope = job->moving ? (float)(q / count) : 0.f, scale = w * rstd;
  FOR_ROWS(n, at) {
    const float *x = job->x + at, *g = job->g + at;
    float *dx = job->y + at;
    if (job->moving)
      for (int32_t i = 0; i < job->inner; i++) dx[i] = scale * (g[i] - shift - (x[i] - mean) * rstd * slope);
    else
      for (int32_t i = 0; i < job->inner; i++) dx[i] = scale * g[i];
  }
}

/* mean variance | x | batch channels inner */
void K(channel_moments)(float *mean, float *variance, float *x, int32_t batch, int32_t channels, int32_t inner) {
  Job job = {.batch = batch, .channels = channels, .inner = inner, .x = x, .mean = mean, .scale = variance};
  parallel(channels, 0.5 * batch * channels * inner, moments, &job);
}

/* y | x mean rstd w? b? | batch channels inner */
void K(channel_norm)(float *y, float *x, float *mean, float *rstd, float *w, float *b, int32_t batch, int32_t channels, int32_t inner) {
  Job job = {.channels = channels, .inner = inner, .y = y, .x = x, .mean = mean, .scale = rstd, .w = w, .b = b};
  parallel(batch * channels, 0.3 * batch * channels * inner, normalise, &job);
}

/* dx dw? db? | g x mean rstd w? | batch channels inner moving */
void K(channel_norm_backward)(float *dx, float *dw, float *db, float *g, float *x, float *mean, float *rstd, float *w, int32_t batch,
                              int32_t channels, int32_t inner, int32_t moving) {
  Job job = {.batch = batch, .channels = channels, .inner = inner, .moving = moving, .y = dx, .x = x, .g = g,
             .mean = mean, .scale = rstd, .w = w, .dw = dw, .db = db};
  parallel(channels, 0.8 * batch * channels * inner, backward, &job);
}
