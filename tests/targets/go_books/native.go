//go:build cgo

package main

/*
#include <stdlib.h>
#include <unistd.h>

static void *volatile blocks[100];

__attribute__((noinline)) static void native_hold(void) {
	for (int i = 0; i < 100; i++)
		blocks[i] = malloc(4096);
}

__attribute__((noinline)) static void native_wait(void) {
	for (;;)
		pause();
}
*/
import "C"

// A goroutine that stays in C.
func parkNative() { go waitInC() }

func waitInC() { C.native_wait() }

// allocateNative returns the bytes that C code allocated and keeps.
func allocateNative() int {
	C.native_hold()
	return 100 * 4096
}
