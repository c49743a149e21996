//go:build withpprof

package main

import _ "net/http/pprof"
