// Package shop is what the services have in common: a shop with two leaks, and pages that leak nothing.
package shop

import (
	"fmt"
	"strings"
	"sync"
)

// Order is what a customer wants.
type Order struct {
	Customer string
	Items    []string
	receipt  [4096]byte
}

// Audit remembers orders and forgets none: the first leak.
type Audit struct {
	lock   sync.Mutex
	orders []*Order
}

var audit Audit

//go:noinline
func (a *Audit) remember(customer string) int {
	order := &Order{Customer: strings.Clone(customer), Items: []string{"tea", "a cup"}}
	a.lock.Lock()
	defer a.lock.Unlock()
	a.orders = append(a.orders, order)
	return len(a.orders)
}

// Buy takes an order.
func Buy(customer string) string {
	return fmt.Sprintf("order %d\n", audit.remember(customer))
}

// Pay asks for a payment that nobody confirms: the second leak.
func Pay() string {
	go awaitConfirmation(make(chan bool))
	return "payment asked for\n"
}

//go:noinline
func awaitConfirmation(confirmed chan bool) bool { return <-confirmed }

// Page makes some text, and keeps none of it.
func Page() string {
	var text strings.Builder
	for line := 0; line < 200; line++ {
		fmt.Fprintf(&text, "<li>article %d</li>\n", line)
	}
	return text.String()
}
