// A program with known sites: it allocates, parks goroutines in every way, and says on request what its own runtime says.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"
)

var (
	held    [][]byte
	trees   map[int]*tree
	strangs []string
	guard   sync.Mutex
	forever = make(chan int)
)

type tree struct {
	left, right *tree
	load        [4096]byte
}

func (t *tree) grow(depth int) {
	if depth > 0 {
		t.left, t.right = &tree{}, &tree{}
		t.left.grow(depth - 1)
		t.right.grow(depth - 1)
	}
}

//go:noinline
func keep(size, count int) {
	for i := 0; i < count; i++ {
		held = append(held, make([]byte, size))
	}
}

func inlined(size int) []byte { return make([]byte, size) }

func drop(size, count int) {
	var last []byte
	for i := 0; i < count; i++ {
		last = inlined(size)
	}
	runtime.KeepAlive(last)
}

func allocate() {
	keep(1<<20, 8)
	keep(3000, 2000)
	drop(70000, 300)
	trees = map[int]*tree{}
	for i := 0; i < 20; i++ {
		trees[i] = &tree{}
		trees[i].grow(4)
	}
	var group sync.WaitGroup
	for i := 0; i < 4; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			text := strings.Repeat("x", 300000)
			guard.Lock()
			strangs = append(strangs, text)
			guard.Unlock()
		}()
	}
	group.Wait()
}

type waiter interface{ wait() }
type inner struct{ channel chan int }
type outer struct{ *inner }

func (w *inner) wait() { <-w.channel }

//go:noinline
func recurse(depth int) int {
	var pad [64]int
	if depth == 0 {
		<-forever
		return 0
	}
	return recurse(depth-1) + pad[depth%64]
}

func panicking() {
	defer func() {
		<-forever
	}()
	var nothing *tree
	nothing.load[7] = 1
}

func readRaw() {
	var ends [2]int
	if syscall.Pipe(ends[:]) == nil {
		syscall.Read(ends[0], make([]byte, 1))
	}
}

func acceptConnections() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		listener.Accept()
	}
}

func park() {
	var mutex sync.Mutex
	mutex.Lock()
	var both sync.RWMutex
	both.Lock()
	var group sync.WaitGroup
	group.Add(1)
	condition := sync.NewCond(&sync.Mutex{})
	var w waiter = outer{&inner{make(chan int)}}
	kinds := []func(){
		func() { <-forever },
		func() { make(chan int) <- 1 },
		func() {
			select {
			case <-forever:
			case <-make(chan int):
			}
		},
		func() { select {} },
		func() { var none chan int; <-none },
		func() { mutex.Lock() },
		func() { both.RLock() },
		func() { time.Sleep(time.Hour) },
		func() { group.Wait() },
		func() { condition.L.Lock(); condition.Wait() },
		func() { runtime.LockOSThread(); <-forever },
		func() { recurse(300) },
		w.wait,
		panicking,
		readRaw,
		acceptConnections,
	}
	for _, kind := range kinds {
		for i := 0; i < 3; i++ {
			go kind()
		}
	}
	time.Sleep(300 * time.Millisecond)
}

func churn() {
	for i := 0; i < 4; i++ {
		go func() {
			for {
				drop(20000, 50)
				guard.Lock()
				held = held[:len(held)/2]
				keep(30000, 20)
				guard.Unlock()
				done := make(chan int)
				go func() { recurse0(20); close(done) }()
				<-done
			}
		}()
	}
	go func() {
		for {
			runtime.GC()
		}
	}()
}

//go:noinline
func recurse0(depth int) int {
	var pad [512]int
	if depth == 0 {
		return 0
	}
	return recurse0(depth-1) + pad[depth]
}

func main() {
	debug.SetGCPercent(-1)
	commands := bufio.NewScanner(os.Stdin)
	fmt.Println("ready")
	for commands.Scan() {
		command, number := commands.Text(), 0
		fmt.Sscanf(command, "many %d", &number)
		switch {
		case command == "allocate":
			allocate()
		case command == "heap":
			runtime.GC()
			pprof.Lookup("heap").WriteTo(os.Stdout, 1)
		case command == "early":
			pprof.Lookup("heap").WriteTo(os.Stdout, 1)
		case command == "park":
			park()
		case command == "goroutine":
			pprof.Lookup("goroutine").WriteTo(os.Stdout, 2)
		case command == "stacks":
			pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
		case command == "count":
			fmt.Println(runtime.NumGoroutine())
		case command == "churn":
			churn()
		case number > 0:
			for i := 0; i < number; i++ {
				go func() { <-forever }()
			}
			time.Sleep(time.Second)
		}
		fmt.Println("\ndone")
	}
}
