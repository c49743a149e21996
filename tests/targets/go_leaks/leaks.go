package main

import (
	"net/http"
	"os"
	"runtime"
	"time"
)

// ------------------------------------------------------------------ a global slice that only grows

type trail struct{ entries []*entry }

type entry struct {
	text string
	room [16 << 10]byte
}

var audit trail

//go:noinline
func (t *trail) remember(text string) {
	t.entries = append(t.entries, &entry{text: text})
}

// publish has the heap profile published with some of this, as it is until the next collection.
func publish() {
	for n := 0; n < 200; n++ {
		audit.remember("a request")
	}
	// What was allocated in one cycle is published at the end of the next.
	runtime.GC()
	runtime.GC()
}

// ------------------------------------------------------------------ goroutines that nobody answers

//go:noinline
func waitForReply(reply chan string) string { return <-reply }

// ------------------------------------------------------------------ files that nobody closes

// Kept, because Go closes files that nobody can reach.
var reports []*os.File

//go:noinline
func openReport() {
	file, err := os.Open("/proc/self/status")
	if err == nil {
		reports = append(reports, file)
	}
}

// ------------------------------------------------------------------ HTTP responses whose body nobody closes

//go:noinline
func fetchPrice(url string) int {
	response, err := http.Get(url)
	if err != nil {
		return 0
	}
	return response.StatusCode
}

// ------------------------------------------------------------------ threads that goroutines never give back

// Every fourth time, and not for ever: thousands would bring the machine to its knees, not the test further.
func pinThreads() {
	if pinned++; pinned%4 == 0 && pinned < 4000 {
		go pinThread()
	}
}

var pinned int

//go:noinline
func pinThread() {
	runtime.LockOSThread()
	time.Sleep(time.Hour)
}
