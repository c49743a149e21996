/*
 * N children, one after the other, that all have the same process id (as root, through /proc/sys/kernel/ns_last_pid). Each
 * allocates 10 blocks in `twins_child` and frees half of the 100 that it has from its parent. Prints how many got the id.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { HELD = 100 };

static void *held[HELD];
static void *volatile kept;

NOINLINE static void twins_child(void)
{
    for (int i = 0; i < 10; i++)
        kept = malloc(100);
}

NOINLINE static void twins_parent(void)
{
    for (int i = 0; i < HELD; i++)
        held[i] = malloc(50);
}

int main(int argc, char **argv)
{
    int count = argc == 2 ? atoi(argv[1]) : 0, last_pid = open("/proc/sys/kernel/ns_last_pid", O_WRONLY), same = 0;
    pid_t wanted = 0;
    twins_parent();
    for (int i = 0; i < count; i++) {
        char text[32];
        int length = snprintf(text, sizeof text, "%d", (int)wanted - 1);
        if (wanted != 0 && pwrite(last_pid, text, (size_t)length, 0) != length)
            return 1;
        pid_t child = fork();
        if (child == 0) {
            twins_child();
            for (int j = 0; j < HELD / 2; j++)
                free(held[j]);
            _exit(0);
        }
        if (wanted == 0)
            wanted = child;
        same += child == wanted;
        if (waitpid(child, NULL, 0) != child)
            return 1;
    }
    printf("%d\n", same);
    return 0;
}
