//go:build !cgo

package main

func profile() {}
