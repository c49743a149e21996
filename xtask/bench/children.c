/*
 * What it costs to make threads and processes: prints the median times (microseconds) of a thread that is made and joined, of
 * a fork whose child ends at once, and of a program that is spawned and waited for.
 */
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { THREADS = 400, FORKS = 200, SPAWNS = 60 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_size);
    return values[count / 2];
}

static void *end_at_once(void *unused)
{
    return unused;
}

static void make_thread(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_at_once, NULL) != 0 || pthread_join(thread, NULL) != 0)
        exit(1);
}

static void make_process(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    if (child < 0 || waitpid(child, NULL, 0) != child)
        exit(1);
}

static void make_program(void)
{
    pid_t child;
    char *arguments[] = {"true", NULL};
    if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ) != 0 || waitpid(child, NULL, 0) != child)
        exit(1);
}

static double measure(void (*make)(void), int count)
{
    static double times[THREADS];
    for (int i = 0; i < count; i++) {
        double begin = now();
        make();
        times[i] = now() - begin;
    }
    return median(times, (size_t)count);
}

int main(void)
{
    double thread = measure(make_thread, THREADS);
    double process = measure(make_process, FORKS);
    double program = measure(make_program, SPAWNS);
    printf("%.1f %.1f %.1f\n", thread, process, program);
    return 0;
}
