package main

import (
	"net"
	"net/http"

	"go_http/fetch"
)

// Kept, because Go closes a connection that nobody can reach.
var responses []*http.Response
var conns []net.Conn

// Each of these leaks so many connections.
func leak(servers *servers, count int) {
	for n := 0; n < count; n++ {
		leakPlain(servers)
		leakSecret(servers)
		leakStarted(servers)
		leakThroughLibrary(servers)
		leakConn(servers)
	}
}

//go:noinline
func leakPlain(servers *servers) { keep(servers.client.Get(servers.plain.URL)) }

//go:noinline
func leakSecret(servers *servers) { keep(servers.secretClient.Get(servers.secret.URL)) }

//go:noinline
func leakStarted(servers *servers) { keep(servers.startingClient.Get(servers.plain.URL)) }

//go:noinline
func leakThroughLibrary(servers *servers) {
	keep(fetch.New(servers.client).Do(servers.plain.URL))
}

// Without net/http: what its own stack says is right.
//
//go:noinline
func leakConn(servers *servers) {
	conn, err := net.Dial("tcp", servers.plain.Listener.Addr().String())
	if err != nil {
		panic(err)
	}
	conns = append(conns, conn)
}

func keep(response *http.Response, err error) {
	if err != nil {
		panic(err)
	}
	responses = append(responses, response)
}
