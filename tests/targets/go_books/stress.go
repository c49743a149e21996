package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// What survives of what stress allocates: each slot is overwritten by turns.
var slots [64][256][]byte

// stress allocates in 4 goroutines at sites of one size each, and in C if there is any, starts goroutines that soon end,
// collects garbage all the time, and asks its own server. It returns how many blocks did not hold what was written into
// them, how many requests it made, and how many of these were not answered rightly.
func stress(milliseconds int) (errors, requests, failed int64) {
	var workers sync.WaitGroup
	end := time.Now().Add(time.Duration(milliseconds) * time.Millisecond)
	client := newClient()
	for n := 0; n < 2; n++ {
		n := n
		workers.Add(1)
		go func() {
			defer workers.Done()
			for round := n; time.Now().Before(end); round += 2 {
				atomic.AddInt64(&requests, 1)
				if err := client.request(round); err != nil {
					fmt.Fprintln(os.Stderr, "request", round, err)
					atomic.AddInt64(&failed, 1)
				}
			}
		}()
	}
	for worker := 0; worker < 4; worker++ {
		worker := worker
		workers.Add(1)
		go func() {
			defer workers.Done()
			for round := 0; time.Now().Before(end); round++ {
				atomic.AddInt64(&errors, stressRound(worker, round)+stressNative(worker))
				// The collector yields to whoever is runnable, and would never be done.
				time.Sleep(200 * time.Microsecond)
			}
		}()
	}
	for time.Now().Before(end) {
		runtime.GC()
	}
	workers.Wait()
	client.close()
	return errors, requests, failed
}

func stressRound(worker, round int) int64 {
	var errors int64
	sites := []func() []byte{stress256, stress1024, stress4096, stress65536}
	for n, site := range sites {
		slot := &slots[worker*8+n][round%256]
		if block := *slot; block != nil && block[0] != byte(len(block)>>8) {
			errors++
		}
		block := site()
		block[0] = byte(len(block) >> 8)
		*slot = block
	}
	done := make(chan int)
	go stressBriefly(done)
	<-done
	return errors
}

//go:noinline
func stress256() []byte { return make([]byte, 256) }

//go:noinline
func stress1024() []byte { return make([]byte, 1024) }

//go:noinline
func stress4096() []byte { return make([]byte, 4096) }

//go:noinline
func stress65536() []byte { return make([]byte, 65536) }

func stressBriefly(done chan int) { done <- 1 }
