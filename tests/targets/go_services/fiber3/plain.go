//go:build !withpprof

package main

import "github.com/gofiber/fiber/v3"

func profile(*fiber.App) {}
