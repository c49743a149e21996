/* What targets/stacks.cpp calls in the library and in the plugin. */
#ifndef STACKS_LIBRARY_H
#define STACKS_LIBRARY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Allocates, and calls `library_hold` at the same depth if it is set. */
void *library_allocate(size_t size);
extern void (*library_hold)(void);

/* Calls back. */
void *library_call(void *(*callback)(size_t), size_t size);

/* Do nothing but compute. The second is called once only, so that a lazy binding of it is still to do. */
int library_compute(int value);
int library_compute_once(int value);

/* Exported by the plugin. */
typedef void *(*plugin_function)(size_t size);
#define PLUGIN_FUNCTION "plugin_run"

#ifdef __cplusplus
}
#endif
#endif
