// A server that opens a file for each connection and never closes it. It prints the address that it listens on.
package main

import (
	"fmt"
	"net"
	"os"
)

// Kept, because Go closes files that nobody can reach.
var held = make(chan *os.File, 1000)

//go:noinline
func openReport() error {
	file, err := os.Open(os.Args[0])
	if err == nil {
		held <- file
	}
	return err
}

//go:noinline
func serve(connection net.Conn) {
	defer connection.Close()
	if err := openReport(); err != nil {
		fmt.Fprintln(connection, err)
		return
	}
	fmt.Fprintln(connection, "done")
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("listening", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go serve(connection)
	}
}
