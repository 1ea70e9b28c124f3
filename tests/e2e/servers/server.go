// A server of net/http.
package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"sync"
)

var (
	lock    sync.Mutex
	counter int
	seen    []*int
)

func count(response http.ResponseWriter, _ *http.Request) {
	lock.Lock()
	defer lock.Unlock()
	counter++
	seen = append(seen, new(int))
	file, err := os.OpenFile("/tmp/count", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0600)
	if err != nil {
		panic(err)
	}
	fmt.Fprint(file, "x")
	file.Close()
	info, err := os.Stat("/tmp/count")
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(response, "%d %d %d", counter, info.Size(), len(seen))
}

func draw(response http.ResponseWriter, _ *http.Request) {
	bytes := make([]byte, 8)
	if _, err := rand.Read(bytes); err != nil {
		panic(err)
	}
	fmt.Fprintf(response, "%x", bytes)
}

func main() {
	http.HandleFunc("/count", count)
	http.HandleFunc("/draw", draw)
	http.HandleFunc("/", func(response http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(response, "ready")
	})
	panic(http.ListenAndServe("127.0.0.1:8000", nil))
}
