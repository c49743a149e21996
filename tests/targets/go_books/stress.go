package main

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// What survives of what stress allocates: each slot is overwritten by turns.
var slots [64][256][]byte

// stress allocates in 4 goroutines at sites of one size each, starts goroutines that soon end, and collects garbage all the
// time. It returns how many blocks did not hold what was written into them.
func stress(milliseconds int) int64 {
	var errors int64
	var workers sync.WaitGroup
	end := time.Now().Add(time.Duration(milliseconds) * time.Millisecond)
	for worker := 0; worker < 4; worker++ {
		worker := worker
		workers.Add(1)
		go func() {
			defer workers.Done()
			for round := 0; time.Now().Before(end); round++ {
				atomic.AddInt64(&errors, stressRound(worker, round))
				// The collector yields to whoever is runnable, and would never be done.
				time.Sleep(200 * time.Microsecond)
			}
		}()
	}
	for time.Now().Before(end) {
		runtime.GC()
	}
	workers.Wait()
	return errors
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
