/*
 * A process that turns into others. Commands, one a line, come in on stdin:
 *
 *     allocate N    allocate N blocks of 64 bytes in `changer_allocate`
 *     fork N        a child does the same, frees half of what its parent held, and exits; answers when it has ended
 *     exec          executes itself anew
 *     retire        the main thread ends, another goes on
 *     exit          end
 *
 * Prints `ready PID` at each start, and `done` after each command.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { BLOCKS = 100000, BLOCK_BYTES = 64 };

static void *blocks[BLOCKS];
static int held;

NOINLINE static void changer_allocate(int count)
{
    for (int i = 0; i < count && held < BLOCKS; i++)
        blocks[held++] = malloc(BLOCK_BYTES);
}

NOINLINE static void changer_free(int count)
{
    for (int i = 0; i < count && held > 0; i++)
        free(blocks[--held]);
}

static int fork_and_wait(int count)
{
    pid_t child = fork();
    if (child == 0) {
        changer_free(held / 2);
        changer_allocate(count);
        _exit(0);
    }
    int status;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static char **arguments;

static void *obey(void *unused)
{
    static char line[256];
    (void)unused;
    while (fgets(line, sizeof line, stdin) != NULL && strcmp(line, "exit\n") != 0) {
        int count;
        pthread_t successor;
        if (sscanf(line, "allocate %d", &count) == 1)
            changer_allocate(count);
        else if (sscanf(line, "fork %d", &count) == 1 && !fork_and_wait(count))
            _exit(1);
        else if (strcmp(line, "exec\n") == 0)
            execv("/proc/self/exe", arguments);
        else if (strcmp(line, "retire\n") == 0 && pthread_create(&successor, NULL, obey, NULL) == 0) {
            puts("done");
            fflush(stdout);
            pthread_exit(NULL);
        }
        puts("done");
        fflush(stdout);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    static char input[4096];
    setvbuf(stdin, input, _IOLBF, sizeof input);
    (void)argc;
    arguments = argv;
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    obey(NULL);
}
