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

import "unsafe"

// A goroutine that stays in C.
func parkNative() { go waitInC() }

func waitInC() { C.native_wait() }

// allocateNative returns the bytes that C code allocated and keeps.
func allocateNative() int {
	C.native_hold()
	return 100 * 4096
}

// The size of the block that stressNative allocates (bytes).
const nativeSize = 3000

// stressNative has a block allocated, written, read and freed by C; it returns how many blocks did not hold what was written.
func stressNative(worker int) int64 {
	block := C.malloc(nativeSize)
	defer C.free(block)
	bytes := unsafe.Slice((*byte)(block), nativeSize)
	for index := range bytes {
		bytes[index] = byte(index + worker)
	}
	for index := range bytes {
		if bytes[index] != byte(index+worker) {
			return 1
		}
	}
	return 0
}
