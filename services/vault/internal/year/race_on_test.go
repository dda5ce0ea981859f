//go:build race

package year_test

const defaultDays = 3
