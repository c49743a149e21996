//go:build !cgo

package main

func parkNative() {}

func allocateNative() int { return 0 }

func stressNative(int) int64 { return 0 }
