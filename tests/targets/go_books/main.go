// A program that prints the runtime's own books: its heap and its goroutines, as runtime/pprof writes them with debug=1.
//
// It answers lines on its stdin: `books` collects garbage twice and prints both, and then each goroutine (debug=2); `profiles DIRECTORY` writes
// the same as profiles; `more` allocates blocks that no
// collection has seen; `native` allocates in C, when it is built with cgo; `stress MS` allocates, collects and asks its own
// server for so long, in many goroutines; `exit` ends it. With the argument `default` it keeps the default rate of the heap profile.
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"
)

// A small rate makes many buckets. It is set before other packages' variables of this program allocate.
var isDefault = setRate()

func setRate() bool {
	if len(os.Args) > 1 && os.Args[1] == "default" {
		return true
	}
	runtime.MemProfileRate = 4096
	return false
}

func main() {
	takeUpRate()
	// A collection of its own accord would publish what was allocated since the books were printed.
	debug.SetGCPercent(-1)
	allocate()
	park()
	parkNative()
	settle()
	fmt.Println("ready", os.Getpid())
	serve()
}

// The runtime draws the distance to the next sample at the sample before, on each processor: the first ones are still drawn
// for the default rate, 512 KiB.
func takeUpRate() {
	done := make(chan bool)
	for processor := 0; processor < runtime.GOMAXPROCS(0); processor++ {
		go func() {
			for n := 0; n < 200; n++ {
				// Of a size that the compiler does not know, it is on the heap.
				runtime.KeepAlive(make([]byte, 64<<10+n))
				time.Sleep(time.Microsecond)
			}
			done <- true
		}()
	}
	for processor := 0; processor < runtime.GOMAXPROCS(0); processor++ {
		<-done
	}
}

// The tests leave out what goes through here: this goroutine prints at one time and reads at another.
func serve() {
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		switch words[0] {
		case "books":
			books()
		case "profiles":
			write(words[1], "heap")
			write(words[1], "goroutine")
			fmt.Println("end")
		case "more":
			moreBlocks()
			fmt.Println("end", moreCount, moreSize)
		case "native":
			fmt.Println("end", allocateNative())
		case "stress":
			milliseconds, _ := strconv.Atoi(words[1])
			errors, requests, failed := stress(milliseconds)
			fmt.Println("end", errors, requests, failed)
		case "exit":
			return
		}
	}
}

func print(profile string, detail int) {
	if err := pprof.Lookup(profile).WriteTo(os.Stdout, detail); err != nil {
		panic(err)
	}
	fmt.Println("end")
}

func write(directory, profile string) {
	file, err := os.Create(filepath.Join(directory, profile+".pb.gz"))
	if err == nil {
		err = pprof.Lookup(profile).WriteTo(file, 0)
	}
	if err != nil {
		panic(err)
	}
	file.Close()
}

func books() {
	runtime.GC()
	runtime.GC()
	print("heap", 1)
	print("goroutine", 1)
	print("goroutine", 2)
}
