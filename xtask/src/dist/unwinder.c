/*
 * What Rust's std wants of an unwinder for RUST_BACKTRACE, for a program that aborts when it panics: a stack without frames. The
 * C library musl has no unwinder of its own, and that of gcc is made for another one.
 */

/* `_URC_END_OF_STACK` of the Itanium C++ ABI: there are no more frames. */
enum { END_OF_STACK = 5 };

int _Unwind_Backtrace(void *visit, void *argument)
{
    (void)visit;
    (void)argument;
    return END_OF_STACK;
}

/* The others are asked of a frame only, and there are none. */
unsigned long _Unwind_GetIP(void *frame)
{
    (void)frame;
    return 0;
}

unsigned long _Unwind_GetCFA(void *frame)
{
    (void)frame;
    return 0;
}

void *_Unwind_FindEnclosingFunction(void *address)
{
    (void)address;
    return 0;
}
