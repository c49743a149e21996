/* The call sites of mappings.c: each a function of its own, which makes one call that maps, unmaps or remaps. */
#ifndef MAPPINGS_SITES_H
#define MAPPINGS_SITES_H

#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

enum { VARIANTS = 4 /* how often each kind of site is there */ };

struct guest;

struct request {
    uintptr_t address;
    size_t length, old_length;
    int protection, flags, fd;
    off_t offset;
    uintptr_t target; /* of mremap with MREMAP_FIXED */
    int advice;
    int segment;
    void *block; /* realloc */
    struct guest *guest;
    pthread_attr_t *attributes;
};

ALWAYS_INLINE long by_instruction(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void *guest_main(void *argument);
static pthread_t *thread_of(struct guest *guest);

#define MMAP_ARGUMENTS r->address, r->length, r->protection, r->flags, r->fd, r->offset
#define MMAP_0 (long)mmap((void *)r->address, r->length, r->protection, r->flags, r->fd, r->offset)
#define MMAP_1 syscall(SYS_mmap, MMAP_ARGUMENTS)
#define MMAP_2 by_instruction(SYS_mmap, (long)r->address, (long)r->length, r->protection, r->flags, r->fd, r->offset)
#define MMAP_3 (long)mmap64((void *)r->address, r->length, r->protection, r->flags, r->fd, r->offset)
#define MUNMAP_0 munmap((void *)r->address, r->length)
#define MUNMAP_1 syscall(SYS_munmap, r->address, r->length)
#define MUNMAP_2 by_instruction(SYS_munmap, (long)r->address, (long)r->length, 0, 0, 0, 0)
#define MUNMAP_3 MUNMAP_0
#define MREMAP_0 (long)mremap((void *)r->address, r->old_length, r->length, r->flags, (void *)r->target)
#define MREMAP_1 syscall(SYS_mremap, r->address, r->old_length, r->length, r->flags, r->target)
#define MREMAP_2 \
    by_instruction(SYS_mremap, (long)r->address, (long)r->old_length, (long)r->length, r->flags, (long)r->target, 0)
#define MREMAP_3 MREMAP_0
#define MPROTECT_0 mprotect((void *)r->address, r->length, r->protection)
#define MPROTECT_1 syscall(SYS_mprotect, r->address, r->length, r->protection)
#define MPROTECT_2 by_instruction(SYS_mprotect, (long)r->address, (long)r->length, r->protection, 0, 0, 0)
#define MPROTECT_3 pkey_mprotect((void *)r->address, r->length, r->protection, -1)
#define MADVISE_0 madvise((void *)r->address, r->length, r->advice)
#define MADVISE_1 syscall(SYS_madvise, r->address, r->length, r->advice)
#define MADVISE_2 by_instruction(SYS_madvise, (long)r->address, (long)r->length, r->advice, 0, 0, 0)
#define MADVISE_3 MADVISE_0
#define SHMAT_0 (long)shmat(r->segment, (void *)r->address, r->flags)
#define SHMAT_1 syscall(SYS_shmat, r->segment, r->address, r->flags)
#define SHMAT_2 by_instruction(SYS_shmat, r->segment, (long)r->address, r->flags, 0, 0, 0)
#define SHMAT_3 SHMAT_0
#define SHMDT_0 shmdt((void *)r->address)
#define SHMDT_1 syscall(SYS_shmdt, r->address)
#define SHMDT_2 by_instruction(SYS_shmdt, (long)r->address, 0, 0, 0, 0, 0)
#define SHMDT_3 SHMDT_0
#define MALLOC_0 (long)malloc(r->length)
#define MALLOC_1 (long)calloc(r->length, 1)
#define MALLOC_2 (long)memalign(64, r->length)
#define MALLOC_3 (long)realloc(r->block, r->length)
#define THREAD_0 -pthread_create(thread_of(r->guest), r->attributes, guest_main, r->guest)
#define THREAD_1 THREAD_0
#define THREAD_2 THREAD_0
#define THREAD_3 THREAD_0

/* Each kind of site, and the call that it makes. */
#define EVERY_SITE(X)                                                                                                  \
    X(anon, MMAP) X(shared, MMAP) X(file, MMAP) X(fileshared, MMAP) X(memfd, MMAP) X(devshm, MMAP) X(stack, MMAP)      \
    X(reserve, MMAP) X(fixed, MMAP) X(noreplace, MMAP) X(growsdown, MMAP) X(hugetlb, MMAP) X(munmap, MUNMAP)           \
    X(munmapfail, MUNMAP) X(mremapgrow, MREMAP) X(mremapshrink, MREMAP) X(mremapmove, MREMAP) X(mremapfixed, MREMAP)   \
    X(mremapleave, MREMAP) X(mremapcopy, MREMAP) X(mremapfail, MREMAP) X(mprotect, MPROTECT) X(madvise, MADVISE)       \
    X(shmat, SHMAT) X(shmremap, SHMAT) X(shmdt, SHMDT) X(malloc, MALLOC) X(thread, THREAD)

/* The empty assembly makes the bodies differ and keeps the call from being the last thing that the function does. */
#define SITE(what, number, call)                                                 \
    NOINLINE static long site_##what##_##number(const struct request *r)         \
    {                                                                            \
        long result = call;                                                      \
        __asm__ volatile("/* " #what " " #number " */" : "+r"(result)::"memory"); \
        return result;                                                           \
    }
#define FOUR_SITES(what, call) SITE(what, 0, call##_0) SITE(what, 1, call##_1) SITE(what, 2, call##_2) SITE(what, 3, call##_3)
EVERY_SITE(FOUR_SITES)

#define ID(what, call) S_##what,
enum what { EVERY_SITE(ID) WHATS };

static const struct site {
    const char *name;
    long (*call)(const struct request *);
} sites[WHATS * VARIANTS] = {
#define ENTRY(what, number) {"site_" #what "_" #number, site_##what##_##number},
#define FOUR_ENTRIES(what, call) ENTRY(what, 0) ENTRY(what, 1) ENTRY(what, 2) ENTRY(what, 3)
    EVERY_SITE(FOUR_ENTRIES)
};

#endif
