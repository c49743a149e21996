//go:build withpprof

package main

import (
	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/pprof"
)

func profile(service *fiber.App) { service.Use(pprof.New()) }
