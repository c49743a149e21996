// A program that leaks in one way, which its first argument names, until its stdin ends. Between its leaks it does what
// leaks nothing. `serve` leaks nothing: it answers HTTP requests, and prints where, for `bodies ADDRESS`.
//
// It is built without net/http/pprof and runtime/pprof, as most programs are, unless the build tag `withpprof` is given.
package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// How often something leaks.
const pace = 10 * time.Millisecond

func main() {
	steps := map[string]func(){
		"slice": func() { audit.remember("a request") },
		// With GOGC=off.
		"uncollected": func() { audit.remember("a request") },
		"goroutines":  func() { go waitForReply(make(chan string)) },
		"files":       func() { openReport() },
		"bodies":      func() { fetchPrice("http://" + os.Args[2]) },
		"threads":     pinThreads,
		"nothing":     func() {},
	}
	if os.Args[1] == "serve" {
		serve()
	}
	if os.Args[1] == "uncollected" {
		publish()
	}
	step := steps[os.Args[1]]
	go func() {
		for range time.Tick(pace) {
			step()
			work()
		}
	}()
	fmt.Println("ready", os.Getpid())
	io.Copy(io.Discard, os.Stdin)
}

// work leaks nothing, but allocates, so that garbage is collected, starts goroutines and opens a file.
func work() {
	done := make(chan []byte)
	for n := 0; n < 4; n++ {
		go func() { done <- make([]byte, 64<<10) }()
	}
	for n := 0; n < 4; n++ {
		recent[n] = <-done
	}
	if file, err := os.Open(os.Args[0]); err == nil {
		file.Close()
	}
}

var recent [4][]byte
