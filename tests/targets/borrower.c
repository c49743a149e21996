/*
 * A process that lends its address space: a child that shares it (`vfork`, `clone` with CLONE_VM) allocates 10 blocks, the
 * process itself 5.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static void *volatile kept;

NOINLINE static int borrower_child(void *unused)
{
    (void)unused;
    for (int i = 0; i < 5; i++)
        kept = malloc(100);
    return 0;
}

NOINLINE static void borrower_parent(void)
{
    for (int i = 0; i < 5; i++)
        kept = malloc(200);
}

int main(void)
{
    static char stack[1 << 16] __attribute__((aligned(16)));
    pid_t child = vfork();
    if (child == 0) {
        borrower_child(NULL);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    child = clone(borrower_child, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    waitpid(child, NULL, 0);
    borrower_parent();
    return 0;
}
