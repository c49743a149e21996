/*
 * A target that comes and goes, and knows what it holds. Commands, one a line, come in on stdin; each is answered by a
 * line on stdout:
 *
 *     heap N      keeps N blocks of 1000 bytes in `served_heap`
 *     free N      frees N of them
 *     fd N        opens N descriptors in `served_fd`
 *     mmap N      maps N areas of 64 KiB in `served_mmap`, and touches them
 *     fork N      forks N children, which keep 3 blocks of 1000 bytes each in `served_child` and wait; gives their ids
 *     exec N      the same, but each executes this program, which keeps 3 blocks in `served_executed`
 *     reap        the children end; answers when they have
 *     exit        ends, and so do the children
 *
 *     served                   prints `ready PID` first
 *     served MILLISECONDS      takes no commands: allocates and frees in `served_heap`, opens and closes, until then
 *     served executed          what `exec` executes
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { BLOCKS = 1 << 16, BYTES = 1000, AREA = 64 << 10, OF_CHILD = 3, PAUSE_NANOSECONDS = 20000000 };

static void *volatile kept;
static void *blocks[BLOCKS];
static int held;

NOINLINE static void served_heap(void)
{
    if (held < BLOCKS)
        blocks[held++] = malloc(BYTES);
    __asm__ volatile("");
}

NOINLINE static void served_child(void)
{
    kept = malloc(BYTES);
    __asm__ volatile("");
}

NOINLINE static void served_executed(void)
{
    kept = malloc(BYTES);
    __asm__ volatile("");
}

NOINLINE static int served_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    __asm__ volatile("");
    return fd;
}

NOINLINE static void served_mmap(void)
{
    char *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area != MAP_FAILED)
        memset(area, 1, AREA);
    __asm__ volatile("");
}

static void free_one(void)
{
    if (held > 0)
        free(blocks[--held]);
}

/* Ends with the pipe, which its parent closes. */
static void be_child(void (*keep)(void), int end)
{
    char nothing;
    for (int i = 0; i < OF_CHILD; i++)
        keep();
    while (read(end, &nothing, 1) > 0)
        ;
    _exit(0);
}

static void make_child(int executes, const int *end)
{
    pid_t child = fork();
    if (child == 0) {
        close(end[1]);
        if (!executes)
            be_child(served_child, end[0]);
        dup2(end[0], STDIN_FILENO);
        execl("/proc/self/exe", "served", "executed", NULL);
        _exit(1);
    }
    printf(" %d", (int)child);
}

static void be_busy(long milliseconds)
{
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += milliseconds / 1000;
    end.tv_nsec += milliseconds % 1000 * 1000000;
    do {
        for (int i = 0; i < 20; i++)
            served_heap();
        for (int i = 0; i < 19; i++)
            free_one();
        close(served_fd());
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NANOSECONDS}, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
}

static void obey(const char *command, int count, int *end)
{
    int is_exec = strcmp(command, "exec") == 0;
    if (strcmp(command, "reap") == 0) {
        close(end[1]);
        while (wait(NULL) > 0)
            ;
        close(end[0]);
        if (pipe2(end, O_CLOEXEC) != 0)
            _exit(1);
    }
    printf("done");
    for (int i = 0; i < count; i++) {
        if (strcmp(command, "heap") == 0)
            served_heap();
        else if (strcmp(command, "free") == 0)
            free_one();
        else if (strcmp(command, "fd") == 0)
            served_fd();
        else if (strcmp(command, "mmap") == 0)
            served_mmap();
        else if (is_exec || strcmp(command, "fork") == 0)
            make_child(is_exec, end);
    }
    puts("");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static char input[4096], line[256], command[16];
    int end[2];
    if (argc == 2 && strcmp(argv[1], "executed") == 0) {
        /* memtrace reads what a new program maps while that runs: give it the time. */
        usleep(500000);
        be_child(served_executed, STDIN_FILENO);
    }
    if (argc == 2) {
        be_busy(atol(argv[1]));
        return 0;
    }
    setvbuf(stdin, input, _IOLBF, sizeof input);
    /* Children must not write what their parent has not. */
    setvbuf(stdout, NULL, _IONBF, 0);
    if (pipe2(end, O_CLOEXEC) != 0)
        return 1;
    printf("ready %d\n", (int)getpid());
    while (fgets(line, sizeof line, stdin) != NULL && strcmp(line, "exit\n") != 0) {
        int count = 0;
        if (sscanf(line, "%15s %d", command, &count) < 1)
            return 1;
        obey(command, count, end);
    }
    close(end[1]);
    while (wait(NULL) > 0)
        ;
    return 0;
}
