/*
 * Allocations under every kind of stack that a program has without frame pointers.
 *
 *     stacks PLUGIN
 *
 * Each scenario is a function `scenario_NAME` that allocates in `make_block`, or in the library or plugin, below
 * frames that are hard to unwind. The blocks stay. Commands, one a line, come in on stdin:
 *
 *     run NAME COUNT   run the scenario COUNT times; answers `done NAME BLOCKS`
 *     hold NAME NTH    run it once, and stop in `hold_still` right after the NTH allocation, in the frame that made
 *                      it; answers `holding`, goes on after one more line, then answers `done NAME BLOCKS`
 *     exit             end
 *
 * Names are plain C, except where C++ is the point.
 */
#include "stacks_library.h"

#include <alloca.h>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <initializer_list>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

/* Makes the frame `bytes` larger, and comes after a call to keep it from being the function's last act. */
#define ROOM(bytes)                  \
    volatile char room[(bytes) + 1]; \
    room[0] = 1
#define AFTER() __asm__ volatile("" : : "r"(&room[0]) : "memory")

static const size_t BLOCK_BYTES = 48;

/* Blocks made in the scenario that runs, by this program, the library and the plugin. */
static volatile unsigned long blocks_made;
static volatile long hold_at; /* after how many more blocks to stop; 0: never */
static const char *plugin_path;
static volatile int sink;

[[noreturn]] static void fail(const char *what)
{
    fprintf(stderr, "stacks: %s\n", what);
    _exit(1);
}

/* ------------------------------------------------------------------ the allocation */

extern "C" {

/* Safe in a signal handler. */
NOINLINE static void hold_still()
{
    if (hold_at == 0)
        return;
    hold_at = hold_at - 1;
    if (hold_at > 0)
        return;
    static const char answer[] = "holding\n";
    char line[8];
    if (write(STDOUT_FILENO, answer, sizeof answer - 1) < 0 || read(STDIN_FILENO, line, 1) < 0)
        _exit(1);
}

NOINLINE static void *make_block(size_t size)
{
    ROOM(16);
    void *block = malloc(size);
    if (block == nullptr)
        fail("malloc failed");
    blocks_made = blocks_made + 1;
    hold_still();
    AFTER();
    return block;
}

/* ------------------------------------------------------------------ depth */

NOINLINE static void shallow_3() { ROOM(8); make_block(BLOCK_BYTES); AFTER(); }
NOINLINE static void shallow_2() { ROOM(200); shallow_3(); AFTER(); }
NOINLINE static void shallow_1() { ROOM(24); shallow_2(); AFTER(); }
NOINLINE static void scenario_shallow() { ROOM(40); shallow_1(); AFTER(); }

/* deep_00 calls deep_01 and so on to deep_59; each frame has a size of its own. */
NOINLINE static void deep_60() { ROOM(16); make_block(BLOCK_BYTES); AFTER(); }
#define LINK(number, next) \
    NOINLINE static void deep_##number() { ROOM(8 * (1##number - 99)); deep_##next(); AFTER(); }
#define TEN_LINKS(ten, next)                                                                                    \
    LINK(ten##9, next##0) LINK(ten##8, ten##9) LINK(ten##7, ten##8) LINK(ten##6, ten##7) LINK(ten##5, ten##6)   \
    LINK(ten##4, ten##5) LINK(ten##3, ten##4) LINK(ten##2, ten##3) LINK(ten##1, ten##2) LINK(ten##0, ten##1)
TEN_LINKS(5, 6) TEN_LINKS(4, 5) TEN_LINKS(3, 4) TEN_LINKS(2, 3) TEN_LINKS(1, 2) TEN_LINKS(0, 1)
NOINLINE static void scenario_deep() { ROOM(8); deep_00(); AFTER(); }

NOINLINE static void recurse(int depth)
{
    ROOM(32);
    if (depth > 1)
        recurse(depth - 1);
    else
        make_block(BLOCK_BYTES);
    AFTER();
}
NOINLINE static void scenario_recursive() { ROOM(8); recurse(60); AFTER(); }

__attribute__((always_inline)) static inline void inlined_inner() { make_block(BLOCK_BYTES); sink = sink + 1; }
__attribute__((always_inline)) static inline void inlined_outer() { inlined_inner(); sink = sink + 1; }
NOINLINE static void scenario_inlined() { ROOM(8); inlined_outer(); AFTER(); }

/* ------------------------------------------------------------------ other files */

NOINLINE static void scenario_library()
{
    ROOM(8);
    library_hold = hold_still;
    library_allocate(BLOCK_BYTES);
    blocks_made = blocks_made + 1;
    AFTER();
}

NOINLINE static void scenario_callback() { ROOM(8); library_call(make_block, BLOCK_BYTES); AFTER(); }

NOINLINE static int compare(const void *left, const void *right)
{
    ROOM(8);
    if (sink == 0) {
        sink = 1;
        make_block(BLOCK_BYTES);
    }
    AFTER();
    return *static_cast<const int *>(left) - *static_cast<const int *>(right);
}
NOINLINE static void scenario_qsort()
{
    ROOM(8);
    int numbers[] = {5, 3, 8, 1, 9, 2};
    sink = 0;
    qsort(numbers, sizeof numbers / sizeof *numbers, sizeof *numbers, compare);
    AFTER();
}

/* The constructor of the plugin allocates while dlopen has not returned yet. */
NOINLINE static void scenario_plugin_load()
{
    ROOM(8);
    void *handle = dlopen(plugin_path, RTLD_NOW);
    if (handle == nullptr)
        fail(dlerror());
    blocks_made = blocks_made + 1;
    AFTER();
}
NOINLINE static void scenario_plugin()
{
    ROOM(8);
    void *handle = dlopen(plugin_path, RTLD_NOW | RTLD_NOLOAD);
    if (handle == nullptr)
        fail("run plugin_load first");
    reinterpret_cast<plugin_function>(dlsym(handle, PLUGIN_FUNCTION))(BLOCK_BYTES);
    blocks_made = blocks_made + 1;
    AFTER();
}

/* ------------------------------------------------------------------ frames of a size known only at run time */

NOINLINE static void use(volatile char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        bytes[i] = static_cast<char>(i);
}

NOINLINE static void with_alloca(size_t length)
{
    volatile char *bytes = static_cast<char *>(alloca(length));
    use(bytes, length);
    make_block(BLOCK_BYTES);
    use(bytes, length);
}
NOINLINE static void scenario_alloca() { ROOM(8); with_alloca(100 + getpid() % 100); AFTER(); }

/* The frame is aligned at run time; its caller is found through a saved pointer (GCC's dynamic realign argument). */
NOINLINE static void realigned_64(size_t length)
{
    __attribute__((aligned(64))) volatile char wide[128];
    volatile char *bytes = static_cast<char *>(alloca(length));
    use(wide, sizeof wide);
    use(bytes, length);
    make_block(BLOCK_BYTES);
    use(wide, sizeof wide);
    use(bytes, length);
}
/* The frame is aligned at run time, and its size is fixed. */
NOINLINE static void realigned_32(size_t length)
{
    __attribute__((aligned(32))) volatile char wide[96];
    use(wide, sizeof wide);
    realigned_64(length);
    use(wide, sizeof wide);
}
NOINLINE static void scenario_realigned() { ROOM(8); realigned_32(100 + getpid() % 100); AFTER(); }

/* ------------------------------------------------------------------ signals */

NOINLINE static void on_signal(int) { ROOM(8); make_block(BLOCK_BYTES); AFTER(); }

static void install(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaction(number, &action, nullptr);
}

NOINLINE static void scenario_signal_raise()
{
    ROOM(8);
    install(SIGUSR1, on_signal, 0);
    raise(SIGUSR1);
    AFTER();
}

NOINLINE static void with_alternate_stack(void *stack, size_t size)
{
    ROOM(8);
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = size;
    sigaltstack(&alternate, nullptr);
    install(SIGUSR2, on_signal, SA_ONSTACK);
    raise(SIGUSR2);
    alternate.ss_flags = SS_DISABLE;
    sigaltstack(&alternate, nullptr);
    AFTER();
}

/* The handler's stack lies below the stack it interrupts. */
NOINLINE static void scenario_signal_stack_below()
{
    static char stack[64 * 1024];
    ROOM(8);
    with_alternate_stack(stack, sizeof stack);
    AFTER();
}

struct alternate_stack {
    void *memory;
    size_t size;
};

NOINLINE static void *below_main(void *argument)
{
    auto *stack = static_cast<alternate_stack *>(argument);
    with_alternate_stack(stack->memory, stack->size);
    return nullptr;
}

static void join(void *(*start)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, nullptr, start, argument) != 0)
        fail("cannot start a thread");
    pthread_join(thread, nullptr);
}

/* The handler's stack, in main's, lies above that of the thread it interrupts. */
NOINLINE static void scenario_signal_stack_above()
{
    char memory[64 * 1024];
    alternate_stack stack = {memory, sizeof memory};
    join(below_main, &stack);
}

/* What the timer interrupts at any instruction. */
NOINLINE static int spin_leaf(int value) { return value * 3 + 1; }
NOINLINE static int spin_middle(int value)
{
    ROOM(100);
    int result = spin_leaf(value) + library_compute(value);
    AFTER();
    return result;
}

NOINLINE static void scenario_signal_timer()
{
    ROOM(8);
    install(SIGALRM, on_signal, 0);
    unsigned long enough = blocks_made + 1;
    struct itimerval interval = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &interval, nullptr);
    while (blocks_made < enough)
        sink = spin_middle(sink);
    interval = {};
    setitimer(ITIMER_REAL, &interval, nullptr);
    AFTER();
}

/* ------------------------------------------------------------------ every single instruction */

static const greg_t TRAP_FLAG = 0x100;
static volatile bool stepping;

/* Runs after each instruction while the trap flag is set. */
NOINLINE static void on_step(int, siginfo_t *, void *context)
{
    ROOM(8);
    if (stepping)
        make_block(BLOCK_BYTES);
    else
        static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
    AFTER();
}

static void install_steps()
{
    struct sigaction action = {};
    action.sa_sigaction = on_step;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGTRAP, &action, nullptr);
}

/* From the second instruction after this one on, a trap follows each instruction, until `stepping` is false. */
#define BEGIN_STEPS() \
    stepping = true;  \
    __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq" : : : "memory", "cc")

NOINLINE static int stepped_inner(size_t length)
{
    volatile char bytes[length];
    bytes[0] = 1;
    bytes[length - 1] = 2;
    return bytes[0] + library_compute(3);
}

NOINLINE static int stepped(int a, int b, int c, int d)
{
    ROOM(88);
    int e = stepped_inner(static_cast<size_t>(a) + 16);
    int f = library_compute(b) + stepped_inner(static_cast<size_t>(c) + 40);
    AFTER();
    return a * e + b * f + c * d + (e > f ? spin_leaf(d) : spin_middle(d));
}

NOINLINE static void scenario_steps()
{
    ROOM(8);
    sink = library_compute(1);
    install_steps();
    BEGIN_STEPS();
    sink = stepped(1, 2, 3, 4);
    stepping = false;
    AFTER();
}

/* Through the dynamic linker's binding of a function, if the program binds lazily. */
NOINLINE static void scenario_lazy_binding()
{
    ROOM(8);
    install_steps();
    BEGIN_STEPS();
    sink = library_compute_once(1);
    stepping = false;
    AFTER();
}

/* ------------------------------------------------------------------ functions that do not return */

static jmp_buf escape;

[[noreturn]] NOINLINE static void never_returns()
{
    ROOM(8);
    make_block(BLOCK_BYTES);
    AFTER();
    longjmp(escape, 1);
}
/* The call is the last instruction: the return address belongs to whatever follows. */
[[noreturn]] NOINLINE static void ends_in_call()
{
    ROOM(24);
    AFTER();
    never_returns();
}
NOINLINE static void scenario_noreturn()
{
    ROOM(8);
    if (setjmp(escape) == 0)
        ends_in_call();
    AFTER();
}

/* ------------------------------------------------------------------ threads */

NOINLINE static void thread_step() { ROOM(64); make_block(BLOCK_BYTES); AFTER(); }
NOINLINE static void *thread_start(void *)
{
    ROOM(8);
    thread_step();
    AFTER();
    return nullptr;
}
NOINLINE static void scenario_thread() { join(thread_start, nullptr); }

} // extern "C"

/* ------------------------------------------------------------------ C++ */

namespace shop {

struct Guard {
    NOINLINE ~Guard() { ROOM(8); make_block(BLOCK_BYTES); AFTER(); }
};

struct Order {
    int number;
    NOINLINE void check(int limit) const
    {
        ROOM(8);
        if (number > limit)
            throw number;
        AFTER();
    }
};

/* The guard is destroyed on the way out, from a landing pad. */
NOINLINE void place(const Order &order)
{
    Guard guard;
    order.check(10);
    sink = order.number;
}

NOINLINE volatile long *create(long value)
{
    return new volatile long(value);
}

} // namespace shop

extern "C" {

NOINLINE static void scenario_exception()
{
    ROOM(8);
    try {
        shop::place(shop::Order{11});
    } catch (int number) {
        sink = number;
    }
    AFTER();
}

NOINLINE static void scenario_new()
{
    ROOM(8);
    *shop::create(7) = 8;
    blocks_made = blocks_made + 1;
    AFTER();
}

} // extern "C"

/* ------------------------------------------------------------------ commands */

static const struct scenario {
    const char *name;
    void (*run)();
} scenarios[] = {
#define SCENARIO(name) {#name, scenario_##name}
    SCENARIO(shallow), SCENARIO(deep), SCENARIO(recursive), SCENARIO(inlined), SCENARIO(library), SCENARIO(callback),
    SCENARIO(qsort), SCENARIO(plugin_load), SCENARIO(plugin), SCENARIO(alloca), SCENARIO(realigned),
    SCENARIO(signal_raise), SCENARIO(signal_stack_below), SCENARIO(signal_stack_above), SCENARIO(signal_timer),
    SCENARIO(steps), SCENARIO(lazy_binding), SCENARIO(noreturn), SCENARIO(thread), SCENARIO(exception), SCENARIO(new),
};

/* One byte at a time: what follows the line stays in the pipe for `hold_still`. */
static bool read_line(char *line, size_t room)
{
    size_t length = 0;
    while (length + 1 < room && read(STDIN_FILENO, &line[length], 1) == 1) {
        if (line[length] == '\n') {
            line[length] = '\0';
            return true;
        }
        length++;
    }
    return false;
}

NOINLINE static void run(const char *name, long count)
{
    for (const scenario &scenario : scenarios) {
        if (strcmp(scenario.name, name) != 0)
            continue;
        blocks_made = 0;
        for (long i = 0; i < count; i++)
            scenario.run();
        printf("done %s %lu\n", name, blocks_made);
        return;
    }
    fail("no such scenario");
}

int main(int argc, char **argv)
{
    static char output[4096], line[256], command[16], name[256];
    setvbuf(stdout, output, _IOLBF, sizeof output);
    if (argc != 2)
        fail("usage: stacks PLUGIN");
    plugin_path = argv[1];
    printf("ready %d\n", static_cast<int>(getpid()));
    while (read_line(line, sizeof line) && strcmp(line, "exit") != 0) {
        long number;
        if (sscanf(line, "%15s %255s %ld", command, name, &number) != 3)
            continue; /* the line that ended a hold */
        bool hold = strcmp(command, "hold") == 0;
        hold_at = hold ? number : 0;
        /* One call for both, so that the stacks are the same. */
        run(name, hold ? 1 : number);
    }
    return 0;
}
