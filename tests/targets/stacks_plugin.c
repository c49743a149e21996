/* The plugin that targets/stacks.cpp loads while it is traced. It allocates as soon as it is loaded. */
#include "stacks_library.h"

#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

void *plugin_kept;

NOINLINE static void *plugin_allocate(size_t size)
{
    volatile char room[56];
    room[0] = 1;
    void *block = malloc(size);
    return room[0] ? block : NULL;
}

__attribute__((constructor)) static void plugin_loaded(void)
{
    plugin_kept = plugin_allocate(4000);
}

void *plugin_run(size_t size)
{
    volatile char room[120];
    room[0] = 1;
    void *block = plugin_allocate(size);
    return room[0] ? block : NULL;
}
