// A program that nothing profiles: the linker switches the heap profile off.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
)

var held [][]byte

func main() {
	commands := bufio.NewScanner(os.Stdin)
	fmt.Println("ready")
	for commands.Scan() {
		for i := 0; i < 1000; i++ {
			held = append(held, make([]byte, 10000))
		}
		fmt.Println(runtime.MemProfileRate)
		fmt.Println("done")
	}
}
