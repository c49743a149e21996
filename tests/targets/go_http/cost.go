package main

import (
	"io"
	"net/http"
	"syscall"
)

// cost makes so many connections, one after the other, and says what each took, both ends together: nanoseconds of CPU time.
func cost(servers *servers, count int) int64 {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	before := cpu()
	for n := 0; n < count; n++ {
		response, err := client.Get(servers.plain.URL)
		if err != nil {
			panic(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	return (cpu() - before) / int64(count)
}

func cpu() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
