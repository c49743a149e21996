package main

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
)

// What is never freed.
var kept []interface{}

func keep(value interface{}) { kept = append(kept, value) }

// allocate goes through one site of each kind.
func allocate() {
	for round := 0; round < 200; round++ {
		keep(inlinedOuter(round))
		keep(viaMethod(&shelf{}, round))
		keep(viaInterface(round))
		keep(viaMethodValue(round))
		keep(viaGenericsOfBytes(round))
		keep(viaGenericsOfStructs(round))
		keep(viaClosure(round))
		keep(viaDefer(round))
		garbage(round)
	}
	growMap()
	growSlice()
	keep(recurse(20))
	keep(recurse(50))
	keep(recurse(300))
	keep(concatenate())
	keep(sorted())
	viaPanic()
	viaGoroutines()
	large()
}

// ------------------------------------------------------------------ inlined calls, three deep

func inlinedOuter(n int) []byte  { return inlinedMiddle(n + 1) }
func inlinedMiddle(n int) []byte { return inlinedInner(n + 1) }
func inlinedInner(n int) []byte  { return make([]byte, 1000+n) }

// ------------------------------------------------------------------ methods, and wrappers that the compiler makes

type shelf struct{ rows [][]byte }

type maker interface{ make(n int) []byte }

//go:noinline
func (s *shelf) fill(n int) []byte {
	s.rows = append(s.rows, make([]byte, 512+n%7))
	return s.rows[0]
}

//go:noinline
func viaMethod(s *shelf, n int) []byte { return s.fill(n) }

type byValue struct{ size int }

// With a value receiver: an interface that holds a pointer calls it through a wrapper.
//
//go:noinline
func (b byValue) make(n int) []byte { return make([]byte, b.size+n%3) }

// Embedding makes a wrapper, too.
type embedding struct {
	*byValue
	name string
}

//go:noinline
func viaInterface(n int) []byte {
	makers := []maker{&byValue{700}, byValue{800}, &embedding{&byValue{900}, "e"}, embedding{&byValue{1100}, "v"}}
	return makers[n%len(makers)].make(n)
}

//go:noinline
func viaMethodValue(n int) []byte {
	function := byValue{1300}.make
	if n%2 == 0 {
		function = (&embedding{&byValue{1500}, "m"}).make
	}
	return call(function, n)
}

//go:noinline
func call(function func(int) []byte, n int) []byte { return function(n) }

// ------------------------------------------------------------------ generics

type pair[K comparable, V any] struct {
	key   K
	value V
	room  [40]V
}

//go:noinline
func newPair[K comparable, V any](key K, value V) *pair[K, V] {
	return &pair[K, V]{key: key, value: value}
}

type list[T any] struct{ items []T }

func (l *list[T]) push(item T) { l.items = append(l.items, item) }

func viaGenericsOfBytes(n int) interface{} { return newPair(n, byte(n)) }

func viaGenericsOfStructs(n int) interface{} {
	var l list[pair[string, int]]
	l.push(*newPair(fmt.Sprint(n), n))
	return l
}

// ------------------------------------------------------------------ closures, deferred calls, panics

func viaClosure(n int) []byte {
	size := n + 300
	outer := func() []byte {
		inner := func(more int) []byte { return make([]byte, size+more) }
		return call(inner, n)
	}
	return outer()
}

func viaDefer(n int) (block []byte) {
	defer func() { block = make([]byte, 333+n) }()
	return nil
}

func viaPanic() {
	defer func() {
		recover()
		for n := 0; n < 100; n++ {
			keep(make([]byte, 2222))
		}
	}()
	var nothing *shelf
	nothing.rows = nil
}

// ------------------------------------------------------------------ depth: a bucket has 32 frames up to Go 1.22, then 128

//go:noinline
func recurse(depth int) [][]byte {
	if depth == 0 {
		blocks := make([][]byte, 100)
		for index := range blocks {
			blocks[index] = make([]byte, 4000)
		}
		return blocks
	}
	return append(recurse(depth-1), nil)
}

// ------------------------------------------------------------------ what the runtime and the library allocate

func growMap() {
	numbers := map[string][]int{}
	for n := 0; n < 5000; n++ {
		key := fmt.Sprint("key ", n)
		numbers[key] = append(numbers[key], n)
	}
	keep(numbers)
}

func growSlice() {
	var all []*int
	for n := 0; n < 100000; n++ {
		all = append(all, new(int))
	}
	keep(all)
}

func concatenate() string {
	text := ""
	for n := 0; n < 300; n++ {
		text += "a line of some length\n"
	}
	return strings.ToUpper(text)
}

type byLength []string

func (b byLength) Len() int           { return len(b) }
func (b byLength) Swap(i, j int)      { b[i], b[j] = b[j], b[i] }
func (b byLength) Less(i, j int) bool { return len(fmt.Sprintf("%s%d", b[i], i)) < len(b[j]) }

func sorted() []string {
	words := strings.Fields(strings.Repeat("of words of quite different lengths ", 50))
	sort.Sort(byLength(words))
	return words
}

func viaGoroutines() {
	results := make(chan []byte)
	for n := 0; n < 50; n++ {
		n := n
		go func() { results <- viaInterface(n) }()
		go produce(results, n)
	}
	for n := 0; n < 100; n++ {
		keep(<-results)
	}
}

func produce(results chan<- []byte, n int) { results <- inlinedOuter(n) }

// More than the runtime keeps in its size classes.
func large() {
	for n := 1; n < 20; n++ {
		keep(make([]byte, n*100_000))
	}
}

//go:noinline
func garbage(n int) {
	var buffer bytes.Buffer
	for i := 0; i < 50; i++ {
		fmt.Fprintf(&buffer, "%d of %d;", i, n)
	}
	if buffer.Len() == 0 {
		keep(buffer)
	}
}

// ------------------------------------------------------------------ what no collection has seen

const (
	moreCount = 1000
	moreSize  = 8192
)

// What moreBlocks keeps.
var more [moreCount][]byte

//go:noinline
func moreBlocks() {
	for n := range more {
		more[n] = make([]byte, moreSize)
	}
}
