/* Runs jobs of 2 and of 40 tasks in turn and checks that every task of every job ran once. Arguments: threads, jobs. */
#include "strut.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

int32_t strut_start(int32_t threads);
void strut_stop(void);

typedef struct {
  int32_t alive, tasks;
  _Atomic int32_t runs[40];
} Job;

static void fail(const char *what, int32_t task, const Job *job) {
  printf("%s: task %d of a job of %d\n", what, task, job->tasks);
  exit(1);
}

static void body(int32_t task, int32_t slot, const void *data) {
  Job *job = (Job *)data;
  if (slot < 0 || slot >= pool_slots()) fail("a slot that does not exist", task, job);
  if (!job->alive || task >= job->tasks) fail("a task that does not exist", task, job);
  atomic_fetch_add(&job->runs[task], 1);
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  strut_start(atoi(arguments[1]));
  for (int jobs = atoi(arguments[2]); jobs > 0; jobs--) {
    Job job = {.alive = 1, .tasks = jobs % 2 ? 2 : 40};
    parallel(job.tasks, 1e9, body, &job);
    for (int32_t task = 0; task < job.tasks; task++)
      if (job.runs[task] != 1) fail(job.runs[task] ? "run more than once" : "never run", task, &job);
    job.alive = 0;
  }
  strut_stop();
  return 0;
}
