//go:build withpprof

package main

import (
	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/pprof"
)

func profile(service *fiber.App) { service.Use(pprof.New()) }
