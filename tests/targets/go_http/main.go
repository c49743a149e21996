// A program that makes HTTP connections to servers of its own, in the way that its first argument names: `leak`, `load` or
// `cost`. How many its second says. It begins when it reads a line, says what it has done, and goes on until its stdin ends.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
)

func main() {
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	servers := newServers()
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready", os.Getpid())
	if _, err := input.ReadString('\n'); err != nil {
		return
	}
	switch os.Args[1] {
	case "leak":
		leak(servers, count)
		fmt.Println("done", count)
	case "load":
		fmt.Println("done", load(servers, count))
	case "cost":
		fmt.Println("done", cost(servers, count))
	}
	io.Copy(io.Discard, input)
}
