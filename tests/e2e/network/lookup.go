// Looks the names up that are its arguments, by Go's own resolver.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

func main() {
	resolver := net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		found, err := resolver.LookupIP(context.Background(), "ip4", name)
		var failed *net.DNSError
		switch {
		case err == nil:
			fmt.Println(name, found[0])
		case errors.As(err, &failed) && failed.IsNotFound:
			fmt.Println(name, "absent")
		default:
			fmt.Println(name, err)
		}
	}
}
