//go:build !withpprof

package main

import "github.com/gofiber/fiber/v2"

func profile(*fiber.App) {}
