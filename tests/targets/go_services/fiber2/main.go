// A shop served by Fiber, version 2. It prints the address that it listens on.
package main

import (
	"fmt"
	"net"

	"github.com/gofiber/fiber/v2"

	"go_services/shop"
)

func main() {
	service := fiber.New(fiber.Config{DisableStartupMessage: true})
	profile(service)
	service.Get("/buy/:customer", func(request *fiber.Ctx) error {
		return request.SendString(shop.Buy(request.Params("customer")))
	})
	service.Get("/pay", func(request *fiber.Ctx) error {
		return request.SendString(shop.Pay())
	})
	service.Get("/page", func(request *fiber.Ctx) error {
		return request.SendString(shop.Page())
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("listening", listener.Addr())
	panic(service.Listener(listener))
}
