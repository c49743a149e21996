// Prints where it is, and waits until its standard input is closed.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
)

type visitor interface{ visit(depth int) []uintptr }

type base struct{ seen int }

type derived struct{ base }

func (b base) visit(depth int) []uintptr {
	return outer(depth + b.seen)
}

func outer(depth int) []uintptr { return middle(depth + 1) }

func middle(depth int) []uintptr {
	if depth > 100 {
		return nil
	}
	return inner()
}

func inner() []uintptr {
	pcs := make([]uintptr, 64)
	return pcs[:runtime.Callers(0, pcs)]
}

//go:noinline
func generic[T visitor](value T) []uintptr {
	return func() []uintptr { return value.visit(1) }()
}

func show(pcs []uintptr) {
	frames := runtime.CallersFrames(pcs)
	for _, pc := range pcs {
		frame, _ := frames.Next()
		fmt.Printf("frame\t%d\t%s\t%s\t%d\n", pc, frame.Function, frame.File, frame.Line)
	}
	fmt.Println("end")
}

func main() {
	fmt.Printf("main\t%d\n", runtime.FuncForPC(mainEntry()).Entry())
	show(generic[visitor](&derived{}))
	show(generic[base](base{}))
	done := make(chan []uintptr)
	go func() { done <- outer(1) }()
	show(<-done)
	profile()
	runtime.GC()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

//go:noinline
func mainEntry() uintptr {
	pcs := make([]uintptr, 1)
	runtime.Callers(2, pcs)
	return pcs[0] - 1
}
