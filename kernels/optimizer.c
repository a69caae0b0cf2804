#include "blocks.h"

enum { CHUNK = 1 << 14, BLOCK = 256 };

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

typedef struct {
  Job step;
  uint8_t *mCodes, *vCodes;
  float *mLargest, *vLargest, *mLevels, *vLevels;
  const Book *mBook, *vBook;
} BlocksJob;

static void adam_blocks_part(int32_t task, int32_t slot, const void *data) {
  (void)slot;
  const BlocksJob *job = data;
  int32_t end = task * CHUNK + least(CHUNK, job->step.n - task * CHUNK);
  for (int32_t at = task * CHUNK; at < end; at += BLOCK) {
    int32_t n = least(BLOCK, end - at), block = at / BLOCK, i = 0;
    float m[BLOCK], v[BLOCK], *out = job->step.w + at, *g = job->step.g + at;
    decode_block(m, job->mCodes + at, n, job->mLargest[block], job->mLevels);
    decode_block(v, job->vCodes + at, n, job->vLargest[block], job->vLevels);
    memset(out, 0, (size_t)n * sizeof *out);
    for (; i + W <= n; i += W) adamw_step(&job->step, out + i, g + i, m + i, v + i, W);
    if (i < n) adamw_step(&job->step, out + i, g + i, m + i, v + i, n - i);
    job->mLargest[block] = largest_size(m, n);
    job->vLargest[block] = largest_size(v, n);
    encode_block(job->mCodes + at, m, n, job->mLargest[block], job->mBook);
    encode_block(job->vCodes + at, v, n, job->vLargest[block], job->vBook);
  }
}

/* out g | mCodes mLargest vCodes vLargest | mLevels vLevels | n beta1 beta2 eps c1 c2 */
void K(adam_blocks)(float *out, float *g, uint8_t *mCodes, float *mLargest, uint8_t *vCodes, float *vLargest, float *mLevels, float *vLevels,
                    int32_t n, double beta1, double beta2, double eps, double c1, double c2) {
  Book mBook = book_of(mLevels), vBook = book_of(vLevels);
  /* a weight of 0 that moves at the rate −1 becomes the direction */
  BlocksJob job = {.step = {.n = n, .w = out, .g = g, .keep = 1, .blend = (float)(1 - beta1), .beta2 = (float)beta2, .rest2 = (float)(1 - beta2),
                            .step = (float)(-1 / c1), .rootC2 = (float)sqrt(c2), .eps = (float)eps, .gradScale = 1},
                   .mCodes = mCodes, .vCodes = vCodes, .mLargest = mLargest, .vLargest = vLargest, .mLevels = mLevels,
                   .vLevels = vLevels, .mBook = &mBook, .vBook = &vBook};
  parallel(chunks(n, CHUNK), 6.0 * n, adam_blocks_part, &job);
}
