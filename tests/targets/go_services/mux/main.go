// A shop served by gorilla/mux. It prints the address that it listens on.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/gorilla/mux"

	"go_services/shop"
)

func main() {
	router := mux.NewRouter()
	router.HandleFunc("/buy/{customer}", func(answer http.ResponseWriter, request *http.Request) {
		io.WriteString(answer, shop.Buy(mux.Vars(request)["customer"]))
	})
	router.HandleFunc("/pay", func(answer http.ResponseWriter, _ *http.Request) {
		io.WriteString(answer, shop.Pay())
	})
	router.HandleFunc("/page", func(answer http.ResponseWriter, _ *http.Request) {
		io.WriteString(answer, shop.Page())
	})
	profile(router)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("listening", listener.Addr())
	panic(http.Serve(listener, router))
}
