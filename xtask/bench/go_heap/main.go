// A program with a large heap, many goroutines, and work to do: `go_heap MEBIBYTES GOROUTINES`. It answers `run MS` on its
// stdin, like the other programs of the benchmarks, with the operations that one goroutine did in so many milliseconds, the
// nanoseconds that passed, and the CPU time of the whole process.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A kibibyte each, and a pointer for the collector to follow.
type node struct {
	next *node
	room [1016]byte
}

var (
	lists [64]*node
	never = make(chan int)
)

func main() {
	mebibytes, goroutines := number(os.Args[1]), number(os.Args[2])
	for n := 0; n < mebibytes*1024; n++ {
		list := &lists[n%len(lists)]
		*list = grow(*list, n%16)
	}
	for n := 0; n < goroutines; n++ {
		go park(n % 10)
	}
	// Twice, so that all that was allocated is published.
	runtime.GC()
	runtime.GC()
	if records, _ := runtime.MemProfile(nil, true); records == 0 {
		panic("no heap profile")
	}
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		if len(words) == 2 && words[0] == "run" {
			operations, wall, cpu := run(time.Duration(number(words[1])) * time.Millisecond)
			fmt.Println("run", operations, wall, cpu)
		}
	}
}

func number(word string) int {
	number, err := strconv.Atoi(word)
	if err != nil {
		panic(err)
	}
	return number
}

// grow allocates at a stack for each depth.
//
//go:noinline
func grow(next *node, depth int) *node {
	if depth == 0 {
		return &node{next: next}
	}
	return grow(next, depth-1)
}

//go:noinline
func park(depth int) int {
	if depth == 0 {
		return <-never
	}
	return park(depth-1) + 1
}

// run follows the lists for so long, and now and then replaces a node: so seldom that the collector is hardly ever at work,
// whose turns would hide what is measured.
func run(length time.Duration) (operations int, wall, cpu int64) {
	start, used := time.Now(), cpuTime()
	for round := 0; time.Since(start) < length; round++ {
		for _, list := range lists {
			operations += follow(list, 32)
		}
		list := &lists[round%len(lists)]
		*list = grow((*list).next, round%16)
	}
	return operations, time.Since(start).Nanoseconds(), cpuTime() - used
}

// follow returns how many of the first nodes are empty, which all are.
//
//go:noinline
func follow(list *node, steps int) (empty int) {
	for ; list != nil && steps > 0; steps-- {
		if list.room[steps] == 0 {
			empty++
		}
		list = list.next
	}
	return empty
}

func cpuTime() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
