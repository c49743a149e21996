package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
)

// Two that answer each request with some text, and clients that know them. The clients never use a connection again.
type servers struct {
	plain, secret *httptest.Server
	client        *http.Client
	secretClient  *http.Client
	// Its connections are dialed by a goroutine that the dialing one starts, as net does for several addresses.
	startingClient *http.Client
}

func newServers() *servers {
	log.SetOutput(io.Discard)
	answer := http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		io.WriteString(answer, "a price")
	})
	servers := &servers{plain: httptest.NewServer(answer), secret: httptest.NewTLSServer(answer)}
	servers.client = &http.Client{Transport: &http.Transport{}}
	servers.secretClient = servers.secret.Client()
	servers.startingClient = &http.Client{Transport: &http.Transport{DialContext: dialElsewhere}}
	return servers
}

//go:noinline
func dialElsewhere(context context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	go func() {
		conn, err := new(net.Dialer).DialContext(context, network, address)
		results <- result{conn, err}
	}()
	dialed := <-results
	return dialed.conn, dialed.err
}
