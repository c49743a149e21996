/*
 * The program that `cargo xtask run` traces: a small request server without the sockets.
 *
 *     cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread demo.c -o demo
 *
 * Four worker threads take numbered requests from a queue. On the way they show the four shapes of
 * memory use that a heap profile has to tell apart:
 *
 *   session_open          leaks: every login keeps 2 KiB for ever (about 0.5 MB a second)
 *   audit_remember_agent  leaks slowly: one 96-byte record every 50th request (about 2 KB a second)
 *   render_page           busy, frees everything: 2 to 9 buffers for each request
 *   cache_store           bounded: 256 slots of 4 KiB each, then it replaces what it holds (1 MiB)
 *
 * It prints `demo: pid PID`, and runs until SIGTERM or SIGINT, or for 120 seconds.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum {
    WORKERS = 4,
    RUN_SECONDS = 120,
    REQUESTS_PER_TICK = 10,
    TICK_NANOSECONDS = 10 * 1000 * 1000,
    QUEUE_SLOTS = 256,
    CACHE_SLOTS = 256,
    CACHE_ENTRY_BYTES = 4096,
    SESSION_BYTES = 2048,
};

/* ------------------------------------------------------------------ sessions: the obvious leak */

struct session {
    struct session *next;
    uint64_t user;
    char state[SESSION_BYTES - 16];
};

static pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER;
static struct session *sessions;

/* The bug: nothing ever closes a session, and each login opens a new one. */
NOINLINE static struct session *session_open(uint64_t user)
{
    struct session *session = malloc(sizeof *session);
    if (session == NULL)
        abort();
    session->user = user;
    memset(session->state, 0, sizeof session->state);
    pthread_mutex_lock(&sessions_lock);
    session->next = sessions;
    sessions = session;
    pthread_mutex_unlock(&sessions_lock);
    return session;
}

/* ------------------------------------------------------------------ audit trail: the slow leak */

struct agent_record {
    struct agent_record *next;
    char name[88];
};

static pthread_mutex_t agents_lock = PTHREAD_MUTEX_INITIALIZER;
static struct agent_record *agents;

/* The bug: an agent that is already known is recorded again. */
NOINLINE static void audit_remember_agent(uint64_t request)
{
    struct agent_record *record = calloc(1, sizeof *record);
    if (record == NULL)
        abort();
    snprintf(record->name, sizeof record->name, "agent-%u", (unsigned)(request % 7));
    pthread_mutex_lock(&agents_lock);
    record->next = agents;
    agents = record;
    pthread_mutex_unlock(&agents_lock);
}

NOINLINE static void audit_request(uint64_t request)
{
    if (request % 50 == 0)
        audit_remember_agent(request);
}

/* ------------------------------------------------------------------ page cache: bounded */

struct cache_entry {
    uint64_t key;
    char *body;
};

static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static struct cache_entry cache[CACHE_SLOTS];

NOINLINE static bool cache_lookup(uint64_t key)
{
    pthread_mutex_lock(&cache_lock);
    const struct cache_entry *entry = &cache[key % CACHE_SLOTS];
    bool hit = entry->body != NULL && entry->key == key;
    pthread_mutex_unlock(&cache_lock);
    return hit;
}

/* Takes the place of whatever the slot held, and frees it. */
NOINLINE static void cache_store(uint64_t key, const char *text)
{
    char *body = malloc(CACHE_ENTRY_BYTES);
    if (body == NULL)
        abort();
    snprintf(body, CACHE_ENTRY_BYTES, "%s", text);
    pthread_mutex_lock(&cache_lock);
    struct cache_entry *entry = &cache[key % CACHE_SLOTS];
    char *previous = entry->body;
    entry->key = key;
    entry->body = body;
    pthread_mutex_unlock(&cache_lock);
    free(previous);
}

/* ------------------------------------------------------------------ rendering: busy, leaks nothing */

NOINLINE static size_t render_page(uint64_t request, char *page, size_t room)
{
    size_t parts = 2 + request % 8;
    size_t length = 0;
    char *buffer = NULL;
    for (size_t part = 0; part < parts; part++) {
        char *grown = realloc(buffer, 64 * (part + 1));
        if (grown == NULL)
            abort();
        buffer = grown;
        length += (size_t)snprintf(buffer, 64, "<p>%zu</p>", part);
    }
    snprintf(page, room, "%s", buffer);
    free(buffer);
    return length;
}

/* ------------------------------------------------------------------ request handling */

NOINLINE static void handle_login(uint64_t request)
{
    session_open(request % 10000);
}

NOINLINE static void handle_page(uint64_t request)
{
    uint64_t key = request % 1009;
    char page[128];
    render_page(request, page, sizeof page);
    if (!cache_lookup(key))
        cache_store(key, page);
}

NOINLINE static void handle_request(uint64_t request)
{
    audit_request(request);
    if (request % 4 == 0)
        handle_login(request);
    else
        handle_page(request);
}

/* ------------------------------------------------------------------ the queue and its threads */

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_changed = PTHREAD_COND_INITIALIZER;
static uint64_t queue[QUEUE_SLOTS];
static size_t queue_head, queue_length;
static bool queue_closed;

/* A request that finds the queue full is dropped, as a busy server would. */
static void queue_push(uint64_t request)
{
    pthread_mutex_lock(&queue_lock);
    if (queue_length < QUEUE_SLOTS) {
        queue[(queue_head + queue_length) % QUEUE_SLOTS] = request;
        queue_length++;
        pthread_cond_signal(&queue_changed);
    }
    pthread_mutex_unlock(&queue_lock);
}

static bool queue_pop(uint64_t *request)
{
    pthread_mutex_lock(&queue_lock);
    while (queue_length == 0 && !queue_closed)
        pthread_cond_wait(&queue_changed, &queue_lock);
    bool found = queue_length > 0;
    if (found) {
        *request = queue[queue_head];
        queue_head = (queue_head + 1) % QUEUE_SLOTS;
        queue_length--;
    }
    pthread_mutex_unlock(&queue_lock);
    return found;
}

static void queue_close(void)
{
    pthread_mutex_lock(&queue_lock);
    queue_closed = true;
    pthread_cond_broadcast(&queue_changed);
    pthread_mutex_unlock(&queue_lock);
}

NOINLINE static void *worker_main(void *unused)
{
    uint64_t request;
    while (queue_pop(&request))
        handle_request(request);
    return unused;
}

static volatile sig_atomic_t stop_requested;

static void request_stop(int signal)
{
    (void)signal;
    stop_requested = 1;
}

/* Stands for the clients: 1,000 requests a second. */
NOINLINE static void accept_requests(void)
{
    const struct timespec tick = {.tv_nsec = TICK_NANOSECONDS};
    time_t end = time(NULL) + RUN_SECONDS;
    uint64_t request = 0;
    while (!stop_requested && time(NULL) < end) {
        for (int i = 0; i < REQUESTS_PER_TICK; i++)
            queue_push(request++);
        nanosleep(&tick, NULL);
    }
}

int main(void)
{
    struct sigaction action = {.sa_handler = request_stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    printf("demo: pid %d\n", (int)getpid());
    fflush(stdout);

    pthread_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        if (pthread_create(&workers[i], NULL, worker_main, NULL) != 0)
            abort();
    accept_requests();
    queue_close();
    for (int i = 0; i < WORKERS; i++)
        pthread_join(workers[i], NULL);
    return 0;
}
