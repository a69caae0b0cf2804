#ifndef STRUT_H
#define STRUT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* K(name) is the symbol of a kernel in this compilation: name_avx512, name_avx2, name_baseline; plain in WebAssembly. */
#ifdef __wasm__
#define K(name) name
#else
#define STRUT_JOIN2(a, b) a##_##b
#define STRUT_JOIN(a, b) STRUT_JOIN2(a, b)
#define K(name) STRUT_JOIN(name, ISA)
#endif

#include "prototypes.h" /* made from src/tensor/backends/signatures*.ts by scripts/build-kernels.mjs */

#define INLINE static inline __attribute__((always_inline))

enum { MAX_THREADS = 32 };

/* Runs body(task, slot, job) for every task; slot < pool_slots() names the thread. Small cost (≈ ns) stays on the caller. */
typedef void Body(int32_t task, int32_t slot, const void *job);
void parallel(int32_t tasks, double cost, Body *body, const void *job);
int32_t pool_slots(void);

INLINE int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
INLINE int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }
INLINE int32_t chunks(int32_t n, int32_t size) { return n / size + (n % size != 0); }

/* Floats of the scratch that belong to one thread: at least 128 Ki. */
INLINE int32_t slot_floats(void) { return SCRATCH_FLOATS / pool_slots() / 16 * 16; }

#endif
