//go:build cgo

package main

// static int answer(void) { return 42; }
import "C"

import "runtime"

var kept [][]byte

// Reaching runtime.MemProfile keeps the linker from switching the heap profile off.
func profile() {
	for i := 0; i < 256; i++ {
		kept = append(kept, make([]byte, 16384+int(C.answer())))
	}
	runtime.MemProfile(nil, true)
}
