/* One pool of threads. Tasks are claimed one by one, so which thread runs a task changes no result. */
#ifndef __wasm__
#define _GNU_SOURCE
#endif
#include "strut.h"

#ifdef __wasm__

void parallel(int32_t tasks, double cost, Body *body, const void *job) {
  (void)cost;
  for (int32_t task = 0; task < tasks; task++) body(task, 0, job);
}
int32_t pool_slots(void) { return 1; }

#else

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define EXPORT __attribute__((visibility("default")))
enum { SPIN_TURNS = 4000 };
static const double WAKE_COST = 6000; /* ns of work below which waking the pool does not pay */

static pthread_t workers[MAX_THREADS];
static _Atomic int32_t slots = 1;
static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER;

/*
 * The job. ticket = generation·2³² + tasks left. A claim is a compare-and-swap on the whole ticket, so it succeeds only
 * while that generation has tasks left, and the fields below change only when it has none.
 */
static _Atomic uint64_t ticket;
static _Atomic int32_t task_count, finished;
static _Atomic(Body *) job_body;
static _Atomic(const void *) job_data;

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake_up = PTHREAD_COND_INITIALIZER;
static _Atomic int32_t sleepers;
static _Atomic int32_t stopping;

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void work(uint64_t generation, int32_t slot) {
  int32_t tasks = atomic_load(&task_count);
  Body *body = atomic_load(&job_body);
  const void *data = atomic_load(&job_data);
  uint64_t now = atomic_load(&ticket);
  while (now >> 32 == generation && (uint32_t)now > 0) {
    if (!atomic_compare_exchange_weak(&ticket, &now, now - 1)) continue;
    body(tasks - (int32_t)(uint32_t)now, slot, data);
    atomic_fetch_add(&finished, 1);
    now = atomic_load(&ticket);
  }
}

static uint64_t next_generation(uint64_t seen) {
  for (int32_t turn = 0; turn < SPIN_TURNS; turn++) {
    uint64_t generation = atomic_load(&ticket) >> 32;
    if (generation != seen || atomic_load(&stopping)) return generation;
    relax();
  }
  pthread_mutex_lock(&sleep_lock);
  atomic_fetch_add(&sleepers, 1);
  uint64_t generation;
  while ((generation = atomic_load(&ticket) >> 32) == seen && !atomic_load(&stopping)) pthread_cond_wait(&wake_up, &sleep_lock);
  atomic_fetch_sub(&sleepers, 1);
  pthread_mutex_unlock(&sleep_lock);
  return generation;
}

static void *run_worker(void *slot) {
  uint64_t seen = atomic_load(&ticket) >> 32;
  while (!atomic_load(&stopping)) {
    work(seen, (int32_t)(intptr_t)slot);
    seen = next_generation(seen);
  }
  return NULL;
}

static void wake_sleepers(void) {
  if (!atomic_load(&sleepers)) return;
  pthread_mutex_lock(&sleep_lock);
  pthread_cond_broadcast(&wake_up);
  pthread_mutex_unlock(&sleep_lock);
}

void parallel(int32_t tasks, double cost, Body *body, const void *job) {
  int alone = tasks < 2 || cost < WAKE_COST || atomic_load(&slots) < 2 || pthread_mutex_trylock(&in_use);
  if (alone) {
    for (int32_t task = 0; task < tasks; task++) body(task, 0, job);
    return;
  }
  atomic_store(&task_count, tasks);
  atomic_store(&job_body, body);
  atomic_store(&job_data, job);
  atomic_store(&finished, 0);
  uint64_t generation = (atomic_load(&ticket) >> 32) + 1;
  atomic_store(&ticket, (generation & 0xffffffff) << 32 | (uint32_t)tasks);
  wake_sleepers();
  work(generation & 0xffffffff, 0);
  for (int32_t turn = 0; atomic_load(&finished) < tasks; turn++) {
    if (turn < SPIN_TURNS) relax();
    else sched_yield();
  }
  pthread_mutex_unlock(&in_use);
}

int32_t pool_slots(void) { return atomic_load(&slots); }

EXPORT void strut_stop(void) {
  pthread_mutex_lock(&in_use);
  atomic_store(&stopping, 1);
  pthread_mutex_lock(&sleep_lock);
  pthread_cond_broadcast(&wake_up);
  pthread_mutex_unlock(&sleep_lock);
  for (int32_t slot = 1; slot < atomic_load(&slots); slot++) pthread_join(workers[slot], NULL);
  atomic_store(&slots, 1);
  atomic_store(&stopping, 0);
  pthread_mutex_unlock(&in_use);
}

/* The library may be unloaded at exit: no thread may still run in it then. */
__attribute__((destructor)) static void leave(void) { strut_stop(); }

EXPORT int32_t strut_start(int32_t threads) {
  threads = most(1, least(threads, MAX_THREADS));
  if (threads == atomic_load(&slots)) return threads;
  strut_stop();
  pthread_mutex_lock(&in_use);
  int32_t running = 1;
  while (running < threads && !pthread_create(&workers[running], NULL, run_worker, (void *)(intptr_t)running)) running++;
  atomic_store(&slots, running);
  pthread_mutex_unlock(&in_use);
  return running;
}

/* 2: AVX-512 F, VL and DQ; 1: AVX2 and FMA; 0: neither. */
EXPORT int32_t strut_cpu(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) return 2;
  return 1;
#else
  return 0;
#endif
}

#endif
