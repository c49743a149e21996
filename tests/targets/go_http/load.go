package main

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// How many requests are under way at once.
const workers = 16

// load makes this many requests, each on a connection of its own and in a goroutine whose stack has to grow, while garbage is
// collected all the time. It says how many were answered and how many were not.
func load(servers *servers, count int) string {
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	var done, answered, failed int64
	stop := make(chan struct{})
	go collect(stop)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, MaxConnsPerHost: workers / 2}}
	var all sync.WaitGroup
	for n := 0; n < workers; n++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for atomic.AddInt64(&done, 1) <= int64(count) {
				finished := make(chan bool)
				go func() { finished <- fetchOnce(client, servers.plain.URL) }()
				if <-finished {
					atomic.AddInt64(&answered, 1)
				} else {
					atomic.AddInt64(&failed, 1)
				}
			}
		}()
	}
	all.Wait()
	close(stop)
	return fmt.Sprintf("%d %d", answered, failed)
}

func collect(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
			runtime.GC()
		}
	}
}

//go:noinline
func fetchOnce(client *http.Client, url string) bool {
	response, err := client.Get(url)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return err == nil && string(text) == "a price"
}
