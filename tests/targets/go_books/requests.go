package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// A server and what asks it, over the loopback device.
type asker struct {
	server *http.Server
	client *http.Client
	url    string
}

// newClient starts a server that answers a number with a text made of it.
func newClient() *asker {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(serveText)}
	go server.Serve(listener)
	// Without keep-alives each request makes a connection, and goroutines that end with it.
	transport := &http.Transport{DisableKeepAlives: true}
	return &asker{
		server: server,
		client: &http.Client{Transport: transport, Timeout: 20 * time.Second},
		url:    "http://" + listener.Addr().String() + "/",
	}
}

func serveText(writer http.ResponseWriter, request *http.Request) {
	number, err := strconv.Atoi(request.URL.Path[1:])
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	writer.Write(text(number))
}

// text has up to some 20 KiB.
func text(number int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%d of all\n", number)), 1+number%1500)
}

// request asks for the text of a number, and checks it.
func (a *asker) request(number int) error {
	response, err := a.client.Get(a.url + strconv.Itoa(number))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !bytes.Equal(body, text(number)) {
		return fmt.Errorf("%s and %d bytes that are not right", response.Status, len(body))
	}
	return nil
}

func (a *asker) close() { a.server.Close() }
