/*
 * A process with threads that were there before, which fork and make other threads. Commands, one a line, come in on stdin:
 *
 *     threads N    N threads, one after the other, allocate one block each in `spawner_thread`
 *     fork N       an old thread forks N children, which allocate 3 blocks each in `spawner_child` and wait for the end;
 *                  prints `children PID…`
 *     exit         the children end, then the process
 *
 * Prints `ready PID`, and `done` after threads.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static void *volatile kept;
static int commands[2], answers[2], end[2];

NOINLINE static void *spawner_thread(void *unused)
{
    kept = malloc(64);
    return unused;
}

NOINLINE static void spawner_child(void)
{
    for (int i = 0; i < 3; i++)
        kept = malloc(128);
}

static void *old_thread(void *unused)
{
    int count;
    while (read(commands[0], &count, sizeof count) == sizeof count) {
        for (int i = 0; i < count; i++) {
            pid_t child = fork();
            if (child == 0) {
                char nothing;
                spawner_child();
                close(end[1]);
                if (read(end[0], &nothing, 1) == 0)
                    _exit(0);
                _exit(1);
            }
            if (write(answers[1], &child, sizeof child) != sizeof child)
                _exit(1);
        }
    }
    return unused;
}

int main(void)
{
    static char input[4096], output[4096], line[256];
    setvbuf(stdin, input, _IOLBF, sizeof input);
    setvbuf(stdout, output, _IOLBF, sizeof output);
    pthread_t old;
    if (pipe(commands) != 0 || pipe(answers) != 0 || pipe(end) != 0)
        return 1;
    for (int i = 0; i < 3; i++)
        if (pthread_create(&old, NULL, old_thread, NULL) != 0)
            return 1;
    printf("ready %d\n", (int)getpid());
    while (fgets(line, sizeof line, stdin) != NULL && strcmp(line, "exit\n") != 0) {
        int count;
        if (sscanf(line, "threads %d", &count) == 1) {
            for (int i = 0; i < count; i++) {
                pthread_t thread;
                if (pthread_create(&thread, NULL, spawner_thread, NULL) != 0 || pthread_join(thread, NULL) != 0)
                    return 1;
            }
            puts("done");
        } else if (sscanf(line, "fork %d", &count) == 1) {
            if (write(commands[1], &count, sizeof count) != sizeof count)
                return 1;
            printf("children");
            for (int i = 0; i < count; i++) {
                pid_t child;
                if (read(answers[0], &child, sizeof child) != sizeof child)
                    return 1;
                printf(" %d", (int)child);
            }
            puts("");
        }
    }
    close(end[1]);
    while (wait(NULL) > 0)
        ;
    return 0;
}
