/* The program whose stacks the walker must follow. Built at -O0 and -O2, without frame pointers.
 *
 *   program SHAPE DEPTH
 *
 * calls through DEPTH frames of the shape and stops at a breakpoint at the end of them. `steps` has a breakpoint
 * at its start and another at its end, to be executed one instruction at a time between them.
 */
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unwind.h>

#define BREAKPOINT() __asm__ volatile("int3" ::: "memory")
#define NOIPA __attribute__((noipa))

int lib_twice(int (*callback)(int), int argument);
int lib_untouched(int argument);

static int at_the_end;
static int stop_at_the_end = 1;

/* What GCC's own unwinder finds from `end` outwards. */
unsigned long unwound[256];
unsigned long unwound_length;

static _Unwind_Reason_Code add_frame(struct _Unwind_Context *context, void *unused)
{
	(void)unused;
	/* It reports the end of the stack as a frame at 0. */
	if (_Unwind_GetIP(context) && unwound_length < sizeof unwound / sizeof unwound[0])
		unwound[unwound_length++] = _Unwind_GetIP(context);
	return _URC_NO_REASON;
}

NOIPA static int end(int x)
{
	at_the_end++;
	if (stop_at_the_end) {
		_Unwind_Backtrace(add_frame, NULL);
		BREAKPOINT();
	}
	return x + 1;
}

NOIPA static int recurse(int depth)
{
	volatile char padding[24] = { (char)depth };
	return depth > 0 ? recurse(depth - 1) + padding[0] : end(depth) + padding[1];
}

NOIPA static int with_alloca(int depth)
{
	volatile char *block = alloca(16 + 16 * depth);
	block[0] = (char)depth;
	return (depth > 0 ? with_alloca(depth - 1) : end(depth)) + block[0];
}

NOIPA static int with_array(int depth)
{
	volatile int array[depth + 1];
	array[depth] = depth;
	return (depth > 0 ? with_array(depth - 1) : end(depth)) + array[depth];
}

/* The arguments on the stack and the variable array make GCC keep the CFA in a slot behind the frame pointer. */
__attribute__((noipa, target("avx2"))) static int realigned(int depth, int b, int c, int d, int e, int f, int g, int h)
{
	volatile double vector[8] __attribute__((aligned(64)));
	volatile int array[depth + 1];
	vector[depth & 7] = g + h;
	array[depth] = depth;
	int below = depth > 0 ? realigned(depth - 1, b, c, d, e, f, g, h) : end(depth);
	return below + (int)vector[depth & 7] + array[depth];
}

NOIPA static int through_library(int depth)
{
	return depth > 0 ? lib_twice(through_library, depth - 1) : end(depth);
}

static int sort_depth;

static int compare(const void *a, const void *b)
{
	if (at_the_end == 0)
		recurse(sort_depth);
	return *(const int *)a - *(const int *)b;
}

NOIPA static int through_qsort(int depth)
{
	int numbers[64];
	sort_depth = depth;
	for (int i = 0; i < 64; i++)
		numbers[i] = (i * 37) % 64;
	qsort(numbers, 64, sizeof numbers[0], compare);
	return numbers[depth & 63];
}

static int signal_depth;

static void on_signal(int signal)
{
	(void)signal;
	recurse(signal_depth);
	if (at_the_end)
		exit(0);
}

/* Faults at its second instruction, with one word pushed. */
int faults(void);
__asm__(".text\n.globl faults\n.type faults, @function\nfaults:\n.cfi_startproc\n"
	"push %rbx\n.cfi_def_cfa_offset 16\n.cfi_offset %rbx, -16\n"
	"ud2\n"
	"pop %rbx\n.cfi_def_cfa_offset 8\nret\n.cfi_endproc\n.size faults, . - faults\n");

/* Faults at its first instruction: a look-up one byte before it finds another function. */
int faults_at_once(void);
__asm__(".text\n.globl faults_at_once\n.type faults_at_once, @function\n"
	"wide:\n.cfi_startproc\n.cfi_def_cfa_offset 4096\nud2\n.cfi_endproc\n"
	"faults_at_once:\n.cfi_startproc\nud2\nret\n.cfi_endproc\n.size faults_at_once, . - faults_at_once\n");

NOIPA static int before_fault(int depth, int (*fault)(void))
{
	return depth > 0 ? before_fault(depth - 1, fault) + 1 : fault() + 1;
}

NOIPA static int through_signal(int depth, int (*fault)(void), int flags)
{
	static char other_stack[1 << 16];
	stack_t stack = { .ss_sp = other_stack, .ss_size = sizeof other_stack };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = flags };
	signal_depth = depth / 2;
	sigaltstack(&stack, NULL);
	sigaction(SIGILL, &action, NULL);
	return before_fault(depth / 2, fault) + 1;
}

static void *in_thread(void *depth)
{
	recurse(*(int *)depth);
	return NULL;
}

NOIPA static int through_thread(int depth)
{
	pthread_t thread;
	pthread_create(&thread, NULL, in_thread, &depth);
	pthread_join(thread, NULL);
	return depth;
}

/* Calls through the lazily bound procedure linkage table, the vDSO and most shapes above. */
NOIPA static int steps(int depth)
{
	struct timespec now;
	int sum = 0;
	stop_at_the_end = 0;
	BREAKPOINT();
	sum += lib_untouched(depth);
	sum += recurse(depth) + with_alloca(depth) + with_array(depth);
	sum += through_library(depth);
	at_the_end = 0;
	sum += through_qsort(depth);
	clock_gettime(CLOCK_MONOTONIC, &now);
	char text[64];
	sum += snprintf(text, sizeof text, "%d %g", sum, 1.5);
	free(strdup(text));
	BREAKPOINT();
	return sum;
}

int main(int count, char **arguments)
{
	if (count != 3)
		return 2;
	const char *shape = arguments[1];
	int depth = atoi(arguments[2]);
	int (*shapes[])(int) = { recurse, with_alloca, with_array, through_library, through_qsort, through_thread, steps };
	const char *names[] = { "recurse", "alloca", "array", "library", "qsort", "thread", "steps" };
	for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
		if (!strcmp(shape, names[i]))
			return shapes[i](depth) & 1;
	if (!strcmp(shape, "realigned"))
		return realigned(depth, 2, 3, 4, 5, 6, 7, 8) & 1;
	if (!strcmp(shape, "signal"))
		return through_signal(depth, faults, 0) & 1;
	if (!strcmp(shape, "signal-stack"))
		return through_signal(depth, faults, SA_ONSTACK) & 1;
	if (!strcmp(shape, "signal-at-start"))
		return through_signal(depth, faults_at_once, 0) & 1;
	return 2;
}
