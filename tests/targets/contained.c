/*
 * What runs in a container: keeps 1,000 bytes every 5 ms, in a function whose name says how the process came to be.
 *
 *     contained           `contained_first` in this process, `contained_child` in one that it forks
 *     contained exec      `contained_exec`
 *
 * With LIBRARY defined, the first process keeps as much in a function of the library, too (contained_library.c). Does not end
 * by itself.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { BYTES = 1000, PAUSE = 5000 };

void contained_library(void);

static void *volatile kept;

NOINLINE static void contained_first(void)
{
    kept = malloc(BYTES);
    __asm__ volatile("");
}

NOINLINE static void contained_child(void)
{
    kept = malloc(BYTES);
    __asm__ volatile("");
}

NOINLINE static void contained_exec(void)
{
    kept = malloc(BYTES);
    __asm__ volatile("");
}

int main(int argc, char **argv)
{
    void (*keep)(void) = contained_exec;
    int is_exec = argc == 2 && strcmp(argv[1], "exec") == 0;
    int is_first = 0;
    signal(SIGCHLD, SIG_IGN);
    if (!is_exec) {
        pid_t child = fork();
        if (child < 0)
            return 1;
        is_first = child != 0;
        keep = is_first ? contained_first : contained_child;
    }
    for (;;) {
        keep();
#ifdef LIBRARY
        if (is_first)
            contained_library();
#endif
        usleep(PAUSE);
    }
}
