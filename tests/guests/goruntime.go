// A Go program that uses what Go programs use: goroutines, channels, timers, the garbage collector,
// JSON, signals, pipes, files. Its output is the same at every run.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type item struct {
	Name  string         `json:"name"`
	Count int            `json:"count"`
	Tags  []string       `json:"tags,omitempty"`
	More  map[string]any `json:"more"`
}

func check(what string, ok bool) {
	if ok {
		fmt.Println("ok", what)
	} else {
		fmt.Println("FAIL", what)
	}
}

func goroutines() {
	var wg sync.WaitGroup
	var total atomic.Int64
	results := make(chan int, 8)
	for i := 0; i < 100; i++ {
		wg.Add(1)
		go func(n int) {
			defer wg.Done()
			sum := 0
			for j := 0; j <= n; j++ {
				sum += j
				if j%16 == 0 {
					runtime.Gosched()
				}
			}
			total.Add(int64(sum))
			results <- n
		}(i)
	}
	go func() { wg.Wait(); close(results) }()
	seen := []int{}
	for n := range results {
		seen = append(seen, n)
	}
	sort.Ints(seen)
	fmt.Println("goroutines", len(seen), seen[0], seen[99], total.Load())
}

// Spins without a call: only a signal of the runtime's own can stop it.
func preemption() {
	var stop atomic.Bool
	spinning := make(chan bool)
	go func() {
		spinning <- true
		for !stop.Load() {
		}
		spinning <- false
	}()
	<-spinning
	for i := 0; i < 3; i++ {
		time.Sleep(2 * time.Millisecond)
		runtime.GC()
	}
	stop.Store(true)
	fmt.Println("preemption", <-spinning)
}

func timers() {
	start := time.Now()
	<-time.After(5 * time.Millisecond)
	check("after", time.Since(start) >= 5*time.Millisecond)
	ticker := time.NewTicker(2 * time.Millisecond)
	for i := 0; i < 5; i++ {
		<-ticker.C
	}
	ticker.Stop()
	check("ticker", time.Since(start) >= 15*time.Millisecond)
	timer := time.NewTimer(time.Hour)
	check("stop", timer.Stop())
	fired := make(chan string, 1)
	time.AfterFunc(time.Millisecond, func() { fired <- "fired" })
	fmt.Println("afterfunc", <-fired)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Millisecond)
	defer cancel()
	<-ctx.Done()
	fmt.Println("context", errors.Is(ctx.Err(), context.DeadlineExceeded))
}

func collector() {
	debug.SetGCPercent(20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	keep := map[int][]byte{}
	for i := 0; i < 20000; i++ {
		keep[i%500] = make([]byte, 1024+i%512)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	check("collections", after.NumGC > before.NumGC)
	fmt.Println("kept", len(keep))
	debug.FreeOSMemory()
}

func encoding() {
	in := item{"name", 3, []string{"a", "b"}, map[string]any{"x": 1.5, "y": nil, "z": []int{1, 2}}}
	text, err := json.Marshal(in)
	fmt.Println(string(text), err)
	var out item
	err = json.Unmarshal(text, &out)
	fmt.Println(out.Name, out.Count, len(out.Tags), len(out.More), err)
	err = json.Unmarshal([]byte(`{"count": "x"}`), &out)
	fmt.Println(err)
}

func signals() {
	got := make(chan os.Signal, 4)
	signal.Notify(got, syscall.SIGUSR1, syscall.SIGTERM)
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGTERM} {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			fmt.Println("FAIL kill", err)
		}
		fmt.Println("signal", <-got)
	}
	signal.Stop(got)
	func() {
		defer func() { fmt.Println("recovered", recover()) }()
		var nothing *item
		fmt.Println(nothing.Name)
	}()
}

func files() {
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println("FAIL pipe", err)
		return
	}
	go func() {
		for i := 0; i < 3; i++ {
			fmt.Fprintf(w, "line %d\n", i)
			time.Sleep(time.Millisecond)
		}
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fmt.Println("pipe", lines.Text())
	}
	dir, err := os.MkdirTemp("/tmp", "go")
	if err != nil {
		fmt.Println("FAIL", err)
		return
	}
	defer os.RemoveAll(dir)
	name := dir + "/file"
	fmt.Println(os.WriteFile(name, []byte(strings.Repeat("x", 100000)), 0o600))
	data, err := os.ReadFile(name)
	fmt.Println(len(data), err)
	_, err = os.Stat(dir + "/missing")
	fmt.Println(errors.Is(err, os.ErrNotExist))
}

func profile() {
	f, err := os.CreateTemp("/tmp", "profile")
	if err != nil {
		fmt.Println("FAIL", err)
		return
	}
	defer os.Remove(f.Name())
	if err := pprof.StartCPUProfile(f); err != nil {
		fmt.Println("FAIL", err)
		return
	}
	sum := 0
	for start := time.Now(); time.Since(start) < 200*time.Millisecond; {
		for i := 0; i < 1000; i++ {
			sum += i
		}
	}
	pprof.StopCPUProfile()
	size, err := f.Seek(0, 2)
	check("profile", err == nil && size > 100 && sum > 0)
}

func main() {
	fmt.Println("hello", len(os.Args), strings.Join(os.Args[1:], " "))
	goroutines()
	preemption()
	timers()
	collector()
	encoding()
	signals()
	files()
	profile()
}
