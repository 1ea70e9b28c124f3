// A warmed Go program: goroutines, a ticker and a heap that has been collected; then it serves text
// requests by kvmlet's private calls, or natively by length-prefixed messages on descriptors 0 and 1.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	receiveNumber = 7000
	sendNumber    = 7001
	messageMax    = 1 << 20
)

var (
	native   bool
	input    = bufio.NewReader(os.Stdin)
	requests int
	ticks    atomic.Int64
	words    = map[string][]int{}
	jobs     = make(chan int)
	results  = make(chan int)
	left     [][]byte
	pattern  = regexp.MustCompile(`(\w+)=(\d+);`)
)

func receive(buffer []byte) []byte {
	if !native {
		for {
			length, _, code := syscall.Syscall6(receiveNumber, uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)), 0, 0, 0, 0)
			if code == 0 {
				return buffer[:length]
			}
			if code == syscall.ENOSYS {
				native = true
				break
			}
			if code != syscall.EINTR {
				os.Exit(98)
			}
		}
	}
	var prefix [4]byte
	if _, err := io.ReadFull(input, prefix[:]); err != nil {
		os.Exit(0)
	}
	message := buffer[:binary.LittleEndian.Uint32(prefix[:])]
	if _, err := io.ReadFull(input, message); err != nil {
		os.Exit(97)
	}
	return message
}

func send(text string) {
	data := []byte(text)
	if native {
		var prefix [4]byte
		binary.LittleEndian.PutUint32(prefix[:], uint32(len(data)))
		os.Stdout.Write(append(prefix[:], data...))
		return
	}
	var at unsafe.Pointer
	if len(data) > 0 {
		at = unsafe.Pointer(&data[0])
	}
	for {
		_, _, code := syscall.Syscall(sendNumber, uintptr(at), uintptr(len(data)), 0)
		if code == 0 {
			return
		}
		if code != syscall.EINTR {
			os.Exit(96)
		}
	}
}

func worker() {
	for job := range jobs {
		results <- job*job + 1
	}
}

func work(count int) string {
	sum := 0
	var group sync.WaitGroup
	group.Add(1)
	go func() {
		defer group.Done()
		for i := 0; i < 16; i++ {
			sum += <-results
		}
	}()
	for i := 0; i < 16; i++ {
		jobs <- count + i
	}
	group.Wait()
	text, _ := json.Marshal(words)
	found := pattern.FindAllStringSubmatch(fmt.Sprintf("a=%d;b=%d;", count, count*3), -1)
	waste := 0
	for i := 0; i < count%50; i++ {
		waste += len(make([]byte, 10000+i))
	}
	return fmt.Sprintf("%d %d %v %d %d", sum, len(text), found, waste, requests)
}

func see() string {
	var all []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && !strings.HasPrefix(target, "/proc") {
			all = append(all, entry.Name()+" "+target)
		}
	}
	sort.Strings(all)
	files, _ := os.ReadDir("/tmp")
	for _, file := range files {
		all = append(all, "/tmp/"+file.Name())
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	directory, _ := os.Getwd()
	return fmt.Sprintf("requests %d left %d words %d at %p goroutines %d pid %d cwd %s\n%s\n%s", requests, len(left), len(words),
		words, runtime.NumGoroutine(), os.Getpid(), directory, strings.Join(all, "\n"), limits)
}

func answer(request string) string {
	requests++
	verb, rest, _ := strings.Cut(request, " ")
	switch verb {
	case "echo":
		return rest
	case "count":
		return fmt.Sprintf("count %d", requests)
	case "work":
		count, _ := strconv.Atoi(rest)
		return work(count)
	case "see":
		return see()
	case "traces":
		os.WriteFile("/tmp/trace", []byte("trace"), 0600)
		os.Chdir("/tmp")
		for i := 0; i < 100; i++ {
			left = append(left, make([]byte, 50000))
			go func() { time.Sleep(time.Hour) }()
		}
		words = nil
		return "left"
	case "ticks":
		// The ticker, timers and the collector go on in every fork.
		before := ticks.Load()
		time.Sleep(30 * time.Millisecond)
		runtime.GC()
		return fmt.Sprintf("ticks go on %v", ticks.Load() > before)
	case "crash":
		return string(*(*byte)(unsafe.Pointer(uintptr(requests))))
	case "spin":
		for i := 0; ; i++ {
			requests = i
		}
	case "eat":
		for {
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = 1
			}
			left = append(left, block)
		}
	}
	return "what? " + request
}

func main() {
	for i := 0; i < 2000; i++ {
		words[fmt.Sprintf("word%d", i)] = []int{i, i * i}
	}
	for i := 0; i < 8; i++ {
		go worker()
	}
	go func() {
		for range time.Tick(5 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	answer("work 5")
	answer("see")
	runtime.GC()
	requests = 0
	buffer := make([]byte, messageMax)
	for {
		send(answer(string(receive(buffer))))
	}
}
