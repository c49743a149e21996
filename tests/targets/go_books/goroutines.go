package main

import (
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// What the parked goroutines wait for, or hold while they wait.
var (
	never   = make(chan int)
	full    = make(chan int, 1)
	mutex   sync.Mutex
	shared  sync.RWMutex
	group   sync.WaitGroup
	changed = sync.NewCond(&sync.Mutex{})
)

// park leaves goroutines behind that wait in every way there is. The tests know the functions' names.
func park() {
	mutex.Lock()
	shared.Lock()
	group.Add(1)
	full <- 1
	for n := 0; n < 7; n++ {
		go waitToReceive()
		go waitToSend()
		go waitInSelect()
		go waitForCondition()
	}
	for n := 0; n < 3; n++ {
		go waitForMutex()
		go waitToRead()
		go waitForGroup()
		go waitOnNil()
		go waitForNothing()
		go sleep()
		go waitLocked()
	}
	go readPipe()
	go readBlocking()
	go accept()
	go waitDeep(60)
	go newPair(never, 1).value1()
	go (&embedding{&byValue{1}, "g"}).wait()
	for n := 0; n < 5; n++ {
		n := n
		go func() {
			func() { <-never }()
			keep(n)
		}()
	}
	parkNested(3)
}

//go:noinline
func waitToReceive() { keep(<-never) }

//go:noinline
func waitToSend() { full <- 1 }

//go:noinline
func waitInSelect() {
	select {
	case <-never:
	case full <- 2:
	}
}

//go:noinline
func waitForCondition() {
	changed.L.Lock()
	changed.Wait()
}

//go:noinline
func waitForMutex() { mutex.Lock() }

//go:noinline
func waitToRead() { shared.RLock() }

//go:noinline
func waitForGroup() { group.Wait() }

//go:noinline
func waitOnNil() {
	var none chan int
	<-none
}

//go:noinline
func waitForNothing() { select {} }

//go:noinline
func sleep() { time.Sleep(time.Hour) }

//go:noinline
func waitLocked() {
	runtime.LockOSThread()
	<-never
}

// In the poller.
func readPipe() {
	reader, writer, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	keep(writer)
	reader.Read(make([]byte, 1))
}

// In a system call, on a thread of its own.
func readBlocking() {
	var ends [2]int
	if err := syscall.Pipe(ends[:]); err != nil {
		panic(err)
	}
	syscall.Read(ends[0], make([]byte, 1))
}

func accept() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	listener.Accept()
}

//go:noinline
func waitDeep(depth int) int {
	if depth == 0 {
		return <-never
	}
	return waitDeep(depth-1) + 1
}

// A method of a generic type, as a goroutine.
func (p *pair[K, V]) value1() {
	<-never
	keep(p)
}

// Through the wrapper of an embedded pointer.
func (b *byValue) wait() {
	<-never
	keep(b)
}

// Goroutines that goroutines make.
func parkNested(depth int) {
	go func() {
		if depth > 0 {
			parkNested(depth - 1)
		}
		waitToReceive()
	}()
}

// settle returns when every goroutine has had the time to block.
func settle() {
	for n := 0; n < 10; n++ {
		time.Sleep(20 * time.Millisecond)
		runtime.Gosched()
	}
}
