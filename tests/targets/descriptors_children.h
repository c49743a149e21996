/* Children of descriptors.c: with descriptor tables of their own, which are nobody's business, or with the parent's. */
#ifndef DESCRIPTORS_CHILDREN_H
#define DESCRIPTORS_CHILDREN_H

#include <spawn.h>
#include <sys/wait.h>

#include "descriptors_nothing.h"

/* Given as the only argument, it makes this program end at once. */
#define END_AT_ONCE "end"
#define THIS_PROGRAM "/proc/self/exe"

static char *const end_arguments[] = {"descriptors", END_AT_ONCE, NULL};

static void await_end(pid_t pid)
{
    int status = 0;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        fail("a child did not end well");
}

/* Opens, replaces and closes in a table that is the caller's alone, by calls that are safe in any child. */
NOINLINE static void work_in_own_table(void)
{
    static const char *const openers[] = {
        "site_open_0", "site_socket_1", "site_pipe2_1", "site_eventfd_2", "site_dup_1",
    };
    int last = 0;
    for (size_t i = 0; i < ARRAY_LENGTH(openers); i++) {
        struct request r = {.path = "file", .domain = AF_UNIX, .type = SOCK_STREAM, .fd = 1};
        if (site_named(openers[i])->call(&r) > 0)
            last = r.opened[0];
    }
    dup2(last, 700);
    dup2(last, 20);
    for (int fd = 5; fd < 60; fd += 3)
        close(fd);
    close_range(100, 120, 0);
}

NOINLINE static void fork_child(struct worker *self)
{
    bool shares_nothing = one_in(self, 2);
    pid_t pid = fork();
    if (pid == 0) {
        work_in_own_table();
        if (shares_nothing)
            close_range(3, ~0U, 0);
        end_child(0);
    }
    if (pid < 0)
        fail("cannot fork");
    await_end(pid);
}

/* Until it executes a program, the child has this process's memory, but a table of its own. */
NOINLINE static void vfork_child(struct worker *self)
{
    (void)self;
    pid_t pid = vfork();
    if (pid == 0) {
        work_in_own_table();
        execv(THIS_PROGRAM, end_arguments);
        _exit(1);
    }
    if (pid < 0)
        fail("cannot vfork");
    await_end(pid);
}

NOINLINE static void spawn_child(struct worker *self)
{
    char *const environment[] = {NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 40 + (int)random_below(self, 20), "file", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, 1, 30 + (int)random_below(self, 10));
    posix_spawn_file_actions_addclose(&actions, 5 + (int)random_below(self, 5));
    int error = posix_spawn(&pid, THIS_PROGRAM, &actions, NULL, end_arguments, environment);
    posix_spawn_file_actions_destroy(&actions);
    if (error == 0)
        await_end(pid);
    else if (!starving)
        fail("cannot spawn");
}

/* ------------------------------------------------------------------ the same table */

/* Puts a descriptor into a slot. What was there is closed, unless only the parent can close it. */
static void give_in_child(struct worker *self, int fd)
{
    while (fd >= 0) {
        fd = put(random_below(self, slot_count), fd);
        if (fd >= 0 && atomic_load(&shared->streams[fd]) == NULL) {
            close_one(self, fd);
            return;
        }
    }
}

static void open_in_child(struct worker *self)
{
    const struct site *site = site_named("site_sharing_child_open_0") + random_below(self, 4);
    struct request r = new_request(self, site);
    if (site->prepare != NULL && !site->prepare(self, &r))
        return;
    int count = open_by(self, site, &r);
    for (int i = 0; i < count; i++)
        give_in_child(self, r.opened[i]);
}

/* A process of its own, of which the descriptor table is this one's: what it opens and closes counts. */
NOINLINE static void sharing_child(struct worker *self)
{
    long pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        in_raw_child = true;
        for (int i = 0; i < 4; i++) {
            open_in_child(self);
            give_in_child(self, take(random_below(self, slot_count)));
        }
        end_child(0);
    }
    if (pid < 0)
        fail("cannot clone");
    await_end((pid_t)pid);
}

/* ------------------------------------------------------------------ a thread with a table of its own */

NOINLINE static void *leave_table(void *argument)
{
    struct worker *self = argument;
    long result;
    switch (random_below(self, 3)) {
    case 0:
        result = close_range(3, ~0U, CLOSE_RANGE_UNSHARE);
        break;
    case 1:
        result = close_range(10, 50, CLOSE_RANGE_UNSHARE);
        break;
    default:
        result = unshare(CLONE_FILES);
    }
    if (result != 0)
        fail("a thread cannot leave the table");
    work_in_own_table();
    return NULL;
}

NOINLINE static void unshare_in_thread(struct worker *self)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, leave_table, self) != 0)
        fail("cannot start a thread");
    pthread_join(thread, NULL);
}

/* Whether threads leave the table now and then. */
static _Atomic bool unsharing;

NOINLINE static void have_child(struct worker *self)
{
    static void (*const ways[])(struct worker *) = {fork_child, vfork_child, spawn_child, sharing_child, sharing_child};
    if (atomic_load(&unsharing) && one_in(self, 4))
        unshare_in_thread(self);
    else
        ways[random_below(self, ARRAY_LENGTH(ways))](self);
}

#endif
