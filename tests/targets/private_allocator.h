/*
 * A small allocator under names of its own: ALLOCATOR_PREFIX before those of C. Blocks come from
 * mappings that are never given back; freed ones are kept by power of two. One lock serves all threads.
 *
 * Including this file makes malloc and its kin mean this allocator's functions.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define PRIVATE_PASTE(prefix, name) prefix##name
#define PRIVATE_EXPAND(prefix, name) PRIVATE_PASTE(prefix, name)
#define PRIVATE(name) PRIVATE_EXPAND(ALLOCATOR_PREFIX, name)
#define PRIVATE_FUNCTION __attribute__((noinline, noclone))

enum { PRIVATE_SMALLEST = 5, PRIVATE_LARGEST = 40, PRIVATE_PAGE = 4096 };

/* Before each block: what it takes to find the whole piece again. */
struct private_header {
    void *piece;
    uint32_t order; /* the piece has 1 << order bytes */
    uint32_t padding;
};

struct private_piece {
    struct private_piece *next;
};

static pthread_mutex_t private_lock = PTHREAD_MUTEX_INITIALIZER;
static struct private_piece *private_pieces[PRIVATE_LARGEST + 1];
static char *private_chunk, *private_chunk_end;

static void *private_map(size_t size)
{
    void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

static void *private_piece(uint32_t order)
{
    size_t size = (size_t)1 << order, chunk = (size_t)4 << 20;
    struct private_piece *piece = private_pieces[order];
    if (piece != NULL) {
        private_pieces[order] = piece->next;
        return piece;
    }
    if (size >= chunk)
        return private_map(size);
    if ((size_t)(private_chunk_end - private_chunk) < size) {
        char *fresh = private_map(chunk);
        if (fresh == NULL)
            return NULL;
        private_chunk = fresh;
        private_chunk_end = fresh + chunk;
    }
    private_chunk += size;
    return private_chunk - size;
}

static void *private_allocate(size_t alignment, size_t size)
{
    alignment = alignment < 16 ? 16 : alignment;
    size_t needed = size + alignment + sizeof(struct private_header);
    uint32_t order = PRIVATE_SMALLEST;
    if (size > (size_t)1 << (PRIVATE_LARGEST - 1)) {
        errno = ENOMEM;
        return NULL;
    }
    while ((size_t)1 << order < needed)
        order++;
    pthread_mutex_lock(&private_lock);
    char *piece = private_piece(order);
    pthread_mutex_unlock(&private_lock);
    if (piece == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    uintptr_t block = ((uintptr_t)piece + sizeof(struct private_header) + alignment - 1) & ~(alignment - 1);
    ((struct private_header *)block)[-1] = (struct private_header){.piece = piece, .order = order};
    return (void *)block;
}

PRIVATE_FUNCTION void *PRIVATE(malloc)(size_t size)
{
    return private_allocate(16, size);
}

PRIVATE_FUNCTION void PRIVATE(free)(void *block)
{
    if (block == NULL)
        return;
    struct private_header header = ((struct private_header *)block)[-1];
    struct private_piece *piece = header.piece;
    pthread_mutex_lock(&private_lock);
    piece->next = private_pieces[header.order];
    private_pieces[header.order] = piece;
    pthread_mutex_unlock(&private_lock);
}

PRIVATE_FUNCTION void *PRIVATE(calloc)(size_t count, size_t size)
{
    size_t all;
    if (__builtin_mul_overflow(count, size, &all)) {
        errno = ENOMEM;
        return NULL;
    }
    void *block = PRIVATE(malloc)(all);
    return block == NULL ? NULL : memset(block, 0, all);
}

PRIVATE_FUNCTION void *PRIVATE(realloc)(void *old, size_t size)
{
    if (old == NULL)
        return PRIVATE(malloc)(size);
    struct private_header header = ((struct private_header *)old)[-1];
    size_t room = ((size_t)1 << header.order) - (size_t)((char *)old - (char *)header.piece);
    if (size <= room)
        return old;
    void *block = PRIVATE(malloc)(size);
    if (block == NULL)
        return NULL;
    memcpy(block, old, room);
    PRIVATE(free)(old);
    return block;
}

PRIVATE_FUNCTION void *PRIVATE(reallocarray)(void *old, size_t count, size_t size)
{
    size_t all;
    if (__builtin_mul_overflow(count, size, &all)) {
        errno = ENOMEM;
        return NULL;
    }
    return PRIVATE(realloc)(old, all);
}

PRIVATE_FUNCTION void *PRIVATE(aligned_alloc)(size_t alignment, size_t size)
{
    return private_allocate(alignment, size);
}

PRIVATE_FUNCTION void *PRIVATE(memalign)(size_t alignment, size_t size)
{
    return PRIVATE(aligned_alloc)(alignment, size);
}

PRIVATE_FUNCTION int PRIVATE(posix_memalign)(void **out, size_t alignment, size_t size)
{
    if (alignment % sizeof(void *) != 0 || (alignment & (alignment - 1)) != 0)
        return EINVAL;
    void *block = PRIVATE(aligned_alloc)(alignment, size);
    if (block == NULL)
        return ENOMEM;
    *out = block;
    return 0;
}

PRIVATE_FUNCTION void *PRIVATE(valloc)(size_t size)
{
    return PRIVATE(aligned_alloc)(PRIVATE_PAGE, size);
}

PRIVATE_FUNCTION void *PRIVATE(pvalloc)(size_t size)
{
    size_t pages = (size + PRIVATE_PAGE - 1) & ~(size_t)(PRIVATE_PAGE - 1);
    return PRIVATE(aligned_alloc)(PRIVATE_PAGE, pages < size ? SIZE_MAX : pages);
}

PRIVATE_FUNCTION static char *private_strndup(const char *text, size_t length)
{
    length = strnlen(text, length);
    char *copy = PRIVATE(malloc)(length + 1);
    if (copy == NULL)
        return NULL;
    copy[length] = '\0';
    return memcpy(copy, text, length);
}

/* With arguments, so that only calls change their meaning. */
#define malloc(size) PRIVATE(malloc)(size)
#define calloc(count, size) PRIVATE(calloc)(count, size)
#define realloc(old, size) PRIVATE(realloc)(old, size)
#define reallocarray(old, count, size) PRIVATE(reallocarray)(old, count, size)
#define free(block) PRIVATE(free)(block)
#define posix_memalign(out, alignment, size) PRIVATE(posix_memalign)(out, alignment, size)
#define aligned_alloc(alignment, size) PRIVATE(aligned_alloc)(alignment, size)
#define memalign(alignment, size) PRIVATE(memalign)(alignment, size)
#define valloc(size) PRIVATE(valloc)(size)
#define pvalloc(size) PRIVATE(pvalloc)(size)
#define strndup(text, length) private_strndup(text, length)
