// A server of HTTP, its clients, a name, a UDP socket and a UNIX socket, by Go's own resolver and poller.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d", r.Method, r.URL.Path, len(body))
	})
	go http.Serve(listener, mux)
	var wait sync.WaitGroup
	answers := make([]string, 32)
	for n := range answers {
		wait.Add(1)
		go func(n int) {
			defer wait.Done()
			answer, err := http.Get(fmt.Sprintf("http://%s/%d", listener.Addr(), n))
			check(err)
			body, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			answers[n] = string(body)
		}(n)
	}
	wait.Wait()
	fmt.Println(answers)
	addresses, err := net.LookupHost("localhost")
	check(err)
	fmt.Println(len(addresses) > 0)
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	check(err)
	client, err := net.Dial("udp", packets.LocalAddr().String())
	check(err)
	client.Write([]byte("datagram"))
	bytes := make([]byte, 64)
	count, from, err := packets.ReadFrom(bytes)
	check(err)
	fmt.Println(string(bytes[:count]), from.String() == client.LocalAddr().String())
	unix, err := net.Listen("unix", "@kvmlet-go")
	check(err)
	go func() {
		connection, _ := unix.Accept()
		io.Copy(connection, connection)
		connection.Close()
	}()
	other, err := net.Dial("unix", "@kvmlet-go")
	check(err)
	other.Write([]byte("stream"))
	other.(*net.UnixConn).CloseWrite()
	echoed, _ := io.ReadAll(other)
	fmt.Println(string(echoed))
}
