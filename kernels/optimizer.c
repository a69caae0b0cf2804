#include "vector.h"

enum { CHUNK = 1 << 14 };

typedef struct {
  int32_t n;
  float *w, *g, *m, *v;
  float keep, blend, beta2, rest2, step, rootC2, eps, gradScale;
} Job;

/* w ·= 1 − lr·decay; m += (g − m)(1 − β₁); v = β₂v + (1 − β₂)g²; w −= (lr/c₁)·m / (√v/√c₂ + eps) */
INLINE void adamw_step(const Job *job, float *w, const float *g, float *m, float *v, int32_t lanes) {
  vf grad = load_part(g, lanes) * job->gradScale;
  vf weight = load_part(w, lanes) * job->keep, first = load_part(m, lanes), second = load_part(v, lanes);
  first += (grad - first) * job->blend;
  second = second * job->beta2 + grad * job->rest2 * grad;
  vf root = vsqrt(second) / job->rootC2 + job->eps;
  store_part(w, weight - job->step * first / root, lanes);
  store_part(m, first, lanes);
  store_part(v, second, lanes);
}

static void adamw_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const Job *job = data;
  int32_t i = task * CHUNK, end = i + least(CHUNK, job->n - i);
  for (; i + W <= end; i += W) adamw_step(job, job->w + i, job->g + i, job->m + i, job->v + i, W);
  if (i < end) adamw_step(job, job->w + i, job->g + i, job->m + i, job->v + i, end - i);
}

/* w g m v n | lr beta1 beta2 eps decay c1 c2 gradScale */
void K(adamw)(float *w, float *g, float *m, float *v, int32_t n, double lr, double beta1, double beta2, double eps, double decay, double c1,
              double c2, double gradScale) {
  Job job = {.n = n, .w = w, .g = g, .m = m, .v = v, .keep = (float)(1 - lr * decay), .blend = (float)(1 - beta1), .beta2 = (float)beta2,
             .rest2 = (float)(1 - beta2), .step = (float)(lr / c1), .rootC2 = (float)sqrt(c2), .eps = (float)eps, .gradScale = (float)gradScale};
  parallel(chunks(n, CHUNK), 1.0 * n, adamw_part, &job);
}
