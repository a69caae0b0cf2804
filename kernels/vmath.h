#ifndef STRUT_VMATH_H
#define STRUT_VMATH_H

#include "vector.h"

/* Σ c[i]·xⁱ by Horner; the number of coefficients is known when compiling. */
#define POLY(x, ...)                                                         \
  ({                                                                         \
    static const float c_[] = {__VA_ARGS__};                                 \
    vf sum_ = splat(c_[sizeof c_ / sizeof *c_ - 1]);                         \
    _Pragma("GCC unroll 16") for (int i_ = sizeof c_ / sizeof *c_ - 2; i_ >= 0; i_--) sum_ = vfma(sum_, x, splat(c_[i_])); \
    sum_;                                                                    \
  })

INLINE vf power_of_two(vi n) { return (vf)((n + 127) << 23); }

/* x = n·ln 2 + r, eˣ = 2ⁿ·(1 + r + r²·Q(r)); 2ⁿ in two factors so that subnormal and infinite results come out. */
INLINE vf vexp(vf x) {
  x = pick(x > 89.f, splat(89.f), pick(x < -104.f, splat(-104.f), x));
  const float magic = 0x1.8p23f;
  vf shifted = x * 0x1.715476p0f + magic;
  vi n = (vi)shifted - (vi)splat(magic);
  vf whole = shifted - magic;
  vf r = vfma(whole, splat(-0x1.62ep-1f), x);
  r = vfma(whole, splat(-0x1.0bfbe8p-15f), r);
  vf q = POLY(r, 0.49999994f, 0.166665152f, 0.041668456f, 0.00836941879f, 0.00138131424f);
  vf e = 1.f + (r + r * r * q);
  vi half = n >> 1;
  return e * power_of_two(half) * power_of_two(n - half);
}

/* x = m·2ᵉ with m in [√½, √2), log x = e·ln 2 + f − f²/2 + f³·P(f), f = m − 1. */
INLINE vf vlog(vf x) {
  vi tiny = x < 0x1p-126f;
  vf scaled = pick(tiny, x * 0x1p25f, x);
  vi bits = (vi)scaled - 0x3f3504f3;
  vi e = bits >> 23;
  vf f = (vf)((bits & 0x7fffff) + 0x3f3504f3) - 1.f;
  vf k = __builtin_convertvector(e - (tiny & 25), vf);
  vf square = f * f;
  vf p = POLY(f, 0.333333135f, -0.250000089f, 0.200021192f, -0.166679963f, 0.142195508f, -0.124055915f, 0.118881747f,
              -0.116756409f, 0.0674660131f);
  vf y = f + (vfma(k, splat(0x1.7f7d1cp-20f), f * square * p) - 0.5f * square);
  y = y + k * 0x1.62e4p-1f;
  y = pick(x == 0.f, splat(-INFINITY), y);
  y = pick((x < 0.f) | (x != x), splat(NAN), y);
  return pick(x == INFINITY, x, y);
}

/* tanh x = x + x³·T(x²) for small |x|, else ±(1 − 2/(e^2|x| + 1)). */
INLINE vf vtanh(vf x) {
  vf z = x * x, a = vabs(x);
  vf t = POLY(z, -0.333333313f, 0.133332059f, -0.0539467633f, 0.0217007007f, -0.00817739498f, 0.00214295881f);
  vf small = x + x * z * t;
  vf large = 1.f - 2.f / (vexp(a + a) + 1.f);
  large = (vf)((vi)large | ((vi)x & (int32_t)0x80000000));
  return pick(a < 0.625f, small, pick(x == x, large, x));
}

INLINE vf vsigmoid(vf x) {
  vf e = vexp(-vabs(x));
  return pick(x < 0.f, e, splat(1.f)) / (1.f + e);
}

/* Φ(x) and φ(x) of the normal distribution. Φ(−a) = t·e^(−a²/2)·Q(t), t = 1/(1 + 0.3a); the rounding error of a² is put back. */
INLINE vf normal_cdf(vf x, vf *density) {
  vf a = vabs(x);
  a = pick(a > 20.f, splat(20.f), a);
  vf square = a * a;
  vf high = (vf)((vi)a & (int32_t)0xfffff000), low = a - high;
  vf error = ((high * high - square) + 2.f * high * low) + low * low;
  vf e = vexp(-0.5f * square) * (1.f - 0.5f * error);
  vf t = 1.f / (1.f + 0.3f * a);
  vf q = POLY(t, 0.119686633f, 0.119572833f, 0.110227391f, 0.0784252733f, 0.0960587263f, -0.0792490095f, 0.191583693f,
              -0.228069007f, 0.112376414f, -0.0206129458f);
  vf tail = t * e * q;
  *density = e * 0.3989422804f;
  return pick(x < 0.f, tail, 1.f - tail);
}

#endif
