/*
 * Threads that work in rounds and are parked between them, at quiet points; and the random numbers that decide what
 * they do. For targets that print books.
 */
#ifndef ROUNDS_H
#define ROUNDS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ random numbers */

/* Where xorshift64 begins: the same for the same number of a round, another for each thread, and never 0. */
static uint64_t seed_of(uint64_t number, size_t thread)
{
    return (number * 64 + thread) * 0x9e3779b97f4a7c15u | 1;
}

/* xorshift64: the same seed gives the same choices. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* ------------------------------------------------------------------ rounds */

static pthread_mutex_t parking_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t parking_changed = PTHREAD_COND_INITIALIZER;
static uint64_t round_number, round_seed;
static size_t worker_count, parked;
static _Atomic uint64_t round_operations; /* what each thread is to do in this round */

/* Parks the caller until the round after `last` begins; then gives it the seed of that round. */
static void await_round(uint64_t *last, uint64_t *random, size_t thread)
{
    pthread_mutex_lock(&parking_lock);
    parked++;
    pthread_cond_broadcast(&parking_changed);
    while (round_number == *last)
        pthread_cond_wait(&parking_changed, &parking_lock);
    *last = round_number;
    *random = seed_of(round_seed, thread);
    pthread_mutex_unlock(&parking_lock);
}

/* Waits until all threads are parked. */
static void await_quiet(void)
{
    pthread_mutex_lock(&parking_lock);
    while (parked < worker_count)
        pthread_cond_wait(&parking_changed, &parking_lock);
    pthread_mutex_unlock(&parking_lock);
}

/* Has each thread do so many operations. */
static void begin_round(uint64_t operations, uint64_t seed)
{
    pthread_mutex_lock(&parking_lock);
    atomic_store(&round_operations, operations);
    round_seed = seed;
    parked = 0;
    round_number++;
    pthread_cond_broadcast(&parking_changed);
    pthread_mutex_unlock(&parking_lock);
}

/* Has the threads do so many operations together, and waits until they are parked again. */
static void run_round(uint64_t operations, uint64_t seed)
{
    begin_round((operations + worker_count - 1) / worker_count, seed);
    await_quiet();
}

#endif
