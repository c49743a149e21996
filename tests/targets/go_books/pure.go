//go:build !cgo

package main

func parkNative() {}

func allocateNative() int { return 0 }
