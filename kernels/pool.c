/*
 * One pool of threads. Tasks are claimed one by one, so which thread runs a task changes no result. Natively the pool
 * starts its threads; in WebAssembly with shared memory they are workers of the host that call strut_work; without, there
 * are none.
 */
#ifndef __wasm__
#define _GNU_SOURCE
#endif
#include "strut.h"

#if defined(__wasm__) && !defined(__wasm_atomics__)

void parallel(int32_t tasks, double cost, Body *body, const void *job) {
  (void)cost;
  for (int32_t task = 0; task < tasks; task++) body(task, 0, job);
}
int32_t pool_slots(void) { return 1; }

#else

#include <stdatomic.h>

static const double WAKE_COST = 6000; /* ns of work below which waking the pool does not pay */

static _Atomic int32_t slots = 1;
static _Atomic int32_t in_use, sleepers, stopping;

/*
 * The job. ticket = generation·2³² + tasks left. A claim is a compare-and-swap on the whole ticket, so it succeeds only
 * while that generation has tasks left, and the fields below change only when it has none.
 */
static _Atomic uint64_t ticket;
static _Atomic int32_t task_count, finished;
static _Atomic(Body *) job_body;
static _Atomic(const void *) job_data;

INLINE uint64_t generation_now(void) { return atomic_load(&ticket) >> 32; }

/* What a platform brings: turns of waiting before sleep, one such turn, sleep while nothing is new, its end, and a rest
   of the caller while others finish their last tasks. */
#ifdef __wasm__

enum { SPIN_TURNS = 40000, REST_NS = 50000 };
static _Atomic int32_t may_block, broken;

INLINE void relax(void) {}

/* The upper half of the ticket. */
INLINE int32_t *generation_word(void) { return (int32_t *)&ticket + 1; }

static void sleep_through(uint64_t seen) {
  atomic_fetch_add(&sleepers, 1);
  while (generation_now() == seen && !atomic_load(&stopping)) __builtin_wasm_memory_atomic_wait32(generation_word(), (int32_t)seen, -1);
  atomic_fetch_sub(&sleepers, 1);
}

static void wake_sleepers(void) {
  if (atomic_load(&sleepers)) __builtin_wasm_memory_atomic_notify(generation_word(), MAX_THREADS);
}

/* The main thread of a page may not sleep: it goes on spinning. */
static void rest(int32_t done) {
  if (atomic_load(&broken)) __builtin_trap();
  if (atomic_load(&may_block)) __builtin_wasm_memory_atomic_wait32((int32_t *)&finished, done, REST_NS);
}

#else

#include <pthread.h>
#include <sched.h>

enum { SPIN_TURNS = 4000 };
static pthread_t workers[MAX_THREADS];
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake_up = PTHREAD_COND_INITIALIZER;

INLINE void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void sleep_through(uint64_t seen) {
  pthread_mutex_lock(&sleep_lock);
  atomic_fetch_add(&sleepers, 1);
  while (generation_now() == seen && !atomic_load(&stopping)) pthread_cond_wait(&wake_up, &sleep_lock);
  atomic_fetch_sub(&sleepers, 1);
  pthread_mutex_unlock(&sleep_lock);
}

static void wake_sleepers(void) {
  if (!atomic_load(&sleepers)) return;
  pthread_mutex_lock(&sleep_lock);
  pthread_cond_broadcast(&wake_up);
  pthread_mutex_unlock(&sleep_lock);
}

static void rest(int32_t done) {
  (void)done;
  sched_yield();
}

#endif

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

static void work_until_stopped(int32_t slot) {
  uint64_t seen = generation_now();
  while (!atomic_load(&stopping)) {
    work(seen, slot);
    int32_t turn = 0;
    while (turn < SPIN_TURNS && generation_now() == seen && !atomic_load(&stopping)) turn++, relax();
    if (turn == SPIN_TURNS) sleep_through(seen);
    seen = generation_now();
  }
}

void parallel(int32_t tasks, double cost, Body *body, const void *job) {
  int alone = tasks < 2 || cost < WAKE_COST || atomic_load(&slots) < 2 || atomic_exchange(&in_use, 1);
  if (alone) {
    for (int32_t task = 0; task < tasks; task++) body(task, 0, job);
    return;
  }
  atomic_store(&task_count, tasks);
  atomic_store(&job_body, body);
  atomic_store(&job_data, job);
  atomic_store(&finished, 0);
  uint64_t generation = (generation_now() + 1) & UINT32_MAX;
  atomic_store(&ticket, generation << 32 | (uint32_t)tasks);
  wake_sleepers();
  work(generation, 0);
  for (int32_t turn = 0, done; (done = atomic_load(&finished)) < tasks; turn++) {
    if (turn < SPIN_TURNS) relax();
    else turn = SPIN_TURNS, rest(done);
  }
  atomic_store(&in_use, 0);
}

int32_t pool_slots(void) { return atomic_load(&slots); }

#ifdef __wasm__

/* A worker's whole life; the host has given it a stack. */
void strut_work(int32_t slot) { work_until_stopped(slot); }

/* The host's workers are there; `block` says whether the caller may sleep. */
void strut_start(int32_t threads, int32_t block) {
  atomic_store(&may_block, block);
  atomic_store(&slots, threads);
}

/* Ends the workers, for good. */
void strut_stop(void) {
  atomic_store(&slots, 1);
  atomic_store(&stopping, 1);
  atomic_fetch_add(&ticket, (uint64_t)1 << 32); /* who is about to sleep sees another generation */
  __builtin_wasm_memory_atomic_notify(generation_word(), MAX_THREADS);
}

/* A worker died within a task: its job cannot end. */
void strut_break(void) { atomic_store(&broken, 1); }

#else

#define EXPORT __attribute__((visibility("default")))

static void *run_worker(void *slot) {
  work_until_stopped((int32_t)(intptr_t)slot);
  return NULL;
}

static void take_pool(void) {
  while (atomic_exchange(&in_use, 1)) sched_yield();
}

EXPORT void strut_stop(void) {
  take_pool();
  atomic_store(&stopping, 1);
  pthread_mutex_lock(&sleep_lock);
  pthread_cond_broadcast(&wake_up);
  pthread_mutex_unlock(&sleep_lock);
  for (int32_t slot = 1; slot < atomic_load(&slots); slot++) pthread_join(workers[slot], NULL);
  atomic_store(&slots, 1);
  atomic_store(&stopping, 0);
  atomic_store(&in_use, 0);
}

/* The library may be unloaded at exit: no thread may still run in it then. */
__attribute__((destructor)) static void leave(void) { strut_stop(); }

EXPORT int32_t strut_start(int32_t threads) {
  threads = most(1, least(threads, MAX_THREADS));
  if (threads == atomic_load(&slots)) return threads;
  strut_stop();
  take_pool();
  int32_t running = 1;
  while (running < threads && !pthread_create(&workers[running], NULL, run_worker, (void *)(intptr_t)running)) running++;
  atomic_store(&slots, running);
  atomic_store(&in_use, 0);
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

#endif
