// A client for the shop: `load ADDRESS WORKERS ROUNDS` has each worker fetch each page so often, over connections that are
// kept open. It prints how many requests were answered, and how many were not.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
)

func main() {
	workers, _ := strconv.Atoi(os.Args[2])
	rounds, _ := strconv.Atoi(os.Args[3])
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	var answered, failed atomic.Int64
	var running sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		running.Add(1)
		go func() {
			defer running.Done()
			for round := 0; round < rounds; round++ {
				for _, page := range []string{fmt.Sprintf("/buy/%d-%d", worker, round), "/pay", "/page", "/page"} {
					if fetch(client, "http://"+os.Args[1]+page) {
						answered.Add(1)
					} else {
						failed.Add(1)
					}
				}
			}
		}()
	}
	running.Wait()
	fmt.Println("done", answered.Load(), failed.Load())
}

func fetch(client *http.Client, url string) bool {
	response, err := client.Get(url)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err == nil && response.StatusCode == http.StatusOK
}
