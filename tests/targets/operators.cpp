/*
 * A program that knows its own heap, in C++: every form of operator new and delete, each from call sites of its own.
 *
 * It speaks as ground_truth.c does: `ready PID`, then `go OPS SEED`, `drain` and `exit`, and the books as answer. A
 * request that cannot be served must throw std::bad_alloc, or return null where nothrow is asked for, and the program
 * goes on: an exception passes through the allocator's own functions. With -DWITHOUT_FAILURES there are no such
 * requests: mimalloc, which Debian builds as C, ends the program.
 *
 * Sizes are multiples of the alignment, and never 0: libstdc++ rounds others up before it calls malloc.
 */
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <pthread.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

namespace {

enum { SLOTS = 1024, ALIGNMENT = 64, FORMS = 8, SITES = 2 * FORMS, THREADS = 2 };

[[noreturn]] void fail(const char *what)
{
    std::fprintf(stderr, "operators: %s\n", what);
    _exit(1);
}

constexpr std::align_val_t aligned{ALIGNMENT};

} // namespace

/* The empty assembly keeps the bodies apart and the call from being the last thing that a site does. */
#define SITE(name, call)                                         \
    extern "C" NOINLINE void *site_##name(std::size_t size)      \
    {                                                            \
        void *block = call;                                      \
        __asm__ volatile("/* " #name " */" : "+r"(block));       \
        return block;                                            \
    }
/* The third is for calls in vain: the exception is allocated there, which no book says. */
#define TWO_SITES(name, call)                            \
    SITE(name##_0, call)                                 \
    SITE(name##_1, call)                                 \
    NOINLINE static void *vain_##name(std::size_t size)  \
    {                                                    \
        void *block = call;                              \
        __asm__ volatile("/* vain */" : "+r"(block));    \
        return block;                                    \
    }

TWO_SITES(new, ::operator new(size))
TWO_SITES(new_array, ::operator new[](size))
TWO_SITES(new_nothrow, ::operator new(size, std::nothrow))
TWO_SITES(new_array_nothrow, ::operator new[](size, std::nothrow))
TWO_SITES(new_aligned, ::operator new(size, aligned))
TWO_SITES(new_array_aligned, ::operator new[](size, aligned))
TWO_SITES(new_aligned_nothrow, ::operator new(size, aligned, std::nothrow))
TWO_SITES(new_array_aligned_nothrow, ::operator new[](size, aligned, std::nothrow))

namespace {

struct Site {
    const char *name;
    void *(*call)(std::size_t), *(*call_in_vain)(std::size_t);
    bool array, aligned, nothrow;
};

#define TWO_ENTRIES(name, array, aligned, nothrow)                               \
    {"site_" #name "_0", site_##name##_0, vain_##name, array, aligned, nothrow}, \
    {"site_" #name "_1", site_##name##_1, vain_##name, array, aligned, nothrow}

const Site sites[SITES] = {
    TWO_ENTRIES(new, false, false, false),
    TWO_ENTRIES(new_array, true, false, false),
    TWO_ENTRIES(new_nothrow, false, false, true),
    TWO_ENTRIES(new_array_nothrow, true, false, true),
    TWO_ENTRIES(new_aligned, false, true, false),
    TWO_ENTRIES(new_array_aligned, true, true, false),
    TWO_ENTRIES(new_aligned_nothrow, false, true, true),
    TWO_ENTRIES(new_array_aligned_nothrow, true, true, true),
};

struct Block {
    void *address;
    std::size_t size;
    unsigned site;
};

struct Book {
    std::uint64_t alloc_objects, alloc_bytes;
    std::int64_t inuse_objects, inuse_bytes;
};

struct Worker {
    std::uint64_t random, operations, wanted;
    Book books[SITES];
    Block slots[SLOTS];
};

Worker workers[THREADS];

std::uint64_t below(Worker &self, std::uint64_t bound)
{
    self.random ^= self.random << 13;
    self.random ^= self.random >> 7;
    self.random ^= self.random << 17;
    return (self.random >> 16) % bound;
}

/* Each block is deleted by one of the forms that fit the one that made it. */
void release(Worker &self, Block &slot)
{
    const Site &site = sites[slot.site];
    Book &book = self.books[slot.site];
    book.inuse_objects--;
    book.inuse_bytes -= static_cast<std::int64_t>(slot.size);
    void *address = slot.address;
    slot.address = nullptr;
    unsigned form = (site.array ? 6 : 0) + (site.aligned ? 3 : 0) + static_cast<unsigned>(below(self, 3));
    switch (form) {
    case 0: ::operator delete(address); break;
    case 1: ::operator delete(address, slot.size); break;
    case 2: ::operator delete(address, std::nothrow); break;
    case 3: ::operator delete(address, aligned); break;
    case 4: ::operator delete(address, slot.size, aligned); break;
    case 5: ::operator delete(address, aligned, std::nothrow); break;
    case 6: ::operator delete[](address); break;
    case 7: ::operator delete[](address, slot.size); break;
    case 8: ::operator delete[](address, std::nothrow); break;
    case 9: ::operator delete[](address, aligned); break;
    case 10: ::operator delete[](address, slot.size, aligned); break;
    default: ::operator delete[](address, aligned, std::nothrow); break;
    }
}

void allocate(Worker &self, Block &slot)
{
    unsigned site = static_cast<unsigned>(below(self, SITES));
    std::size_t size = ALIGNMENT * (1 + below(self, below(self, 100) == 0 ? 4096 : 40));
    slot = {sites[site].call(size), size, site};
    if (slot.address == nullptr || (sites[site].aligned && reinterpret_cast<std::uintptr_t>(slot.address) % ALIGNMENT))
        fail("an allocation failed");
    Book &book = self.books[site];
    book.alloc_objects++;
    book.alloc_bytes += size;
    book.inuse_objects++;
    book.inuse_bytes += static_cast<std::int64_t>(size);
}

NOINLINE void allocate_in_vain(Worker &self)
{
#ifndef WITHOUT_FAILURES
    const Site &site = sites[below(self, SITES)];
    bool thrown = false;
    try {
        if (site.call_in_vain((std::size_t{1} << 62) + ALIGNMENT) != nullptr)
            fail("an impossible allocation succeeded");
    } catch (const std::bad_alloc &) {
        thrown = true;
    }
    if (thrown == site.nothrow)
        fail("an impossible allocation failed in the wrong way");
#else
    (void)self;
#endif
}

NOINLINE void operate(Worker &self, unsigned depth)
{
    if (depth > 0) {
        operate(self, depth - 1);
        __asm__ volatile("" : : : "memory");
        return;
    }
    Block &slot = self.slots[below(self, SLOTS)];
    if (below(self, 500) == 0)
        allocate_in_vain(self);
    else if (slot.address == nullptr)
        allocate(self, slot);
    else
        release(self, slot);
}

void *work(void *argument)
{
    Worker &self = *static_cast<Worker *>(argument);
    for (std::uint64_t done = 0; done < self.wanted; done++) {
        operate(self, static_cast<unsigned>(below(self, 8)));
        self.operations++;
    }
    return nullptr;
}

void go(unsigned long long operations, unsigned long long seed)
{
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].random = (seed * 64 + i) * 0x9e3779b97f4a7c15u | 1;
        workers[i].wanted = operations / THREADS + 1;
        if (pthread_create(&threads[i], nullptr, work, &workers[i]) != 0)
            fail("cannot start a thread");
    }
    for (pthread_t thread : threads)
        pthread_join(thread, nullptr);
}

void print_books()
{
    std::uint64_t operations = 0;
    for (unsigned site = 0; site < SITES; site++) {
        Book sum{};
        for (const Worker &worker : workers) {
            sum.alloc_objects += worker.books[site].alloc_objects;
            sum.alloc_bytes += worker.books[site].alloc_bytes;
            sum.inuse_objects += worker.books[site].inuse_objects;
            sum.inuse_bytes += worker.books[site].inuse_bytes;
        }
        std::printf("%s %llu %llu %lld %lld\n", sites[site].name, static_cast<unsigned long long>(sum.alloc_objects),
                    static_cast<unsigned long long>(sum.alloc_bytes), static_cast<long long>(sum.inuse_objects),
                    static_cast<long long>(sum.inuse_bytes));
    }
    for (const Worker &worker : workers)
        operations += worker.operations;
    std::printf("end %llu\n", static_cast<unsigned long long>(operations));
}

void drain()
{
    for (Worker &worker : workers)
        for (Block &slot : worker.slots)
            if (slot.address != nullptr)
                release(worker, slot);
}

} // namespace

int main()
{
    static char line[256];
    std::printf("ready %d\n", static_cast<int>(getpid()));
    std::fflush(stdout);
    while (std::fgets(line, sizeof line, stdin) != nullptr) {
        unsigned long long operations, seed;
        if (std::sscanf(line, "go %llu %llu", &operations, &seed) == 2)
            go(operations, seed);
        else if (std::strcmp(line, "drain\n") == 0)
            drain();
        else if (std::strcmp(line, "exit\n") == 0)
            return 0;
        else
            fail("no such command");
        print_books();
        std::fflush(stdout);
    }
    return 0;
}
