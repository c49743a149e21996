//go:build withpprof

package main

import (
	"net/http"
	_ "net/http/pprof"

	"github.com/gorilla/mux"
)

func profile(router *mux.Router) {
	router.PathPrefix("/debug/pprof/").Handler(http.DefaultServeMux)
}
