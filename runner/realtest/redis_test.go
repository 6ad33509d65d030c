// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package realtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// TestRedis loads a server past the limit, has it fork to save while it is
// written to, compares every key, and loads what was saved into a server that
// runs alone, H14.
func TestRedis(t *testing.T) {
	server := runtest.Tool(t, "redis-server")
	dir := t.TempDir()
	p := runtest.Program{
		Args: []string{server, "--port", "0", "--unixsocket", filepath.Join(dir, "s"), "--dir", dir,
			"--save", "", "--rdb-key-save-delay", "-4", "--appendonly", "no", "--enable-debug-command", "local", "--logfile", "/dev/null"},
		Limit: uint64(runtest.Smaller(24, 6)) * runtest.MiB, Stores: either("file:"), Stderr: true,
	}
	keys := runtest.Smaller(60_000, 15_000)
	var digests []string // what was saved, and what there was in the end, by run
	p.While = func(t *testing.T, r *runtest.Run) {
		c := dialRedis(t, r, filepath.Join(dir, "s"))
		saved, final := loadRedis(c, keys)
		c.do("SHUTDOWN", "NOSAVE")
		digests = append(digests, saved+" "+final)
		// What was saved, read by a server that is not watched by anybody.
		again := p
		again.While = func(t *testing.T, r *runtest.Run) {
			c := dialRedis(t, r, filepath.Join(dir, "s"))
			if got := c.do("DEBUG", "DIGEST"); got != saved {
				t.Errorf("digest %s of what was saved, want %s", got, saved)
			}
			c.do("SHUTDOWN", "NOSAVE")
		}
		r.Await(t, runtest.Patience)
		again.Run(t, p.Args)
		if err := os.Remove(filepath.Join(dir, "dump.rdb")); err != nil {
			t.Error(err)
		}
	}
	runtest.Same(t, p)
	for _, d := range digests {
		if d != digests[0] {
			t.Errorf("the contents differ: %q", digests)
		}
	}
}

// value is what key number i holds in its nth version: half of it random.
func value(i, version int) string {
	x := uint64(i)*0x9e3779b97f4a7c15 + uint64(version) + 1
	var b strings.Builder
	for range 20 + i%40 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		fmt.Fprintf(&b, "%016x and the same", x)
	}
	return b.String()
}

// loadRedis fills a server, changes it while it saves itself, and compares
// all that it holds. It returns the digests of what was saved and of the end.
func loadRedis(c *redis, keys int) (saved, final string) {
	for i := range keys {
		c.send("SET", "key:"+strconv.Itoa(i), value(i, 0))
		c.send("HSET", "hash:"+strconv.Itoa(i%100), strconv.Itoa(i), strconv.Itoa(i*7919))
		c.send("RPUSH", "list:"+strconv.Itoa(i%10), strconv.Itoa(i))
		if i%200 == 199 {
			c.collect()
		}
	}
	c.collect()
	saved = c.do("DEBUG", "DIGEST")
	c.do("BGSAVE")
	saving := 0
	for i := range keys {
		if i%3 == 0 {
			c.send("SET", "key:"+strconv.Itoa(i), value(i, 1))
		}
		if i%7 == 0 {
			c.send("DEL", "key:"+strconv.Itoa(keys-1-i))
		}
		if i%200 == 199 {
			c.collect()
			if strings.Contains(c.do("INFO", "persistence"), "rdb_bgsave_in_progress:1") {
				saving++
			}
		}
	}
	c.collect()
	if saving == 0 {
		c.t.Error("it had saved itself before it was written to")
	}
	for {
		info := c.do("INFO", "persistence")
		if strings.Contains(info, "rdb_bgsave_in_progress:0") {
			if !strings.Contains(info, "rdb_last_bgsave_status:ok") {
				c.t.Errorf("it has not saved itself: %s", info)
			}
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for i := range keys {
		want := value(i, 0)
		if i%3 == 0 {
			want = value(i, 1)
		}
		if j := keys - 1 - i; j%7 == 0 && (i%3 != 0 || j >= i) {
			want = "" // deleted after the last change, or never changed
		}
		if got := c.do("GET", "key:"+strconv.Itoa(i)); got != want {
			c.t.Fatalf("key %d is %.60q..., want %.60q...", i, got, want)
		}
		if got := c.do("HGET", "hash:"+strconv.Itoa(i%100), strconv.Itoa(i)); got != strconv.Itoa(i*7919) {
			c.t.Fatalf("field %d is %.60q", i, got)
		}
	}
	if got := c.do("LRANGE", "list:3", "0", "2"); got != "3 13 23" {
		c.t.Errorf("list: %.60q", got)
	}
	return saved, c.do("DEBUG", "DIGEST")
}

// redis is a client of the server.
type redis struct {
	t       *testing.T
	conn    net.Conn
	in      *bufio.Reader
	out     *bufio.Writer
	pending int // replies that are not read
}

// dialRedis waits for the server to answer, and to have loaded what there is.
func dialRedis(t *testing.T, r *runtest.Run, socket string) *redis {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(runtest.Patience))
			c := &redis{t: t, conn: conn, in: bufio.NewReader(conn), out: bufio.NewWriter(conn)}
			t.Cleanup(func() { conn.Close() })
			if got := c.do("PING"); got == "PONG" {
				return c
			}
			continue
		}
		select {
		case <-r.Ended:
			t.Fatalf("the server has ended: %v", r.Err)
		default:
		}
		if time.Now().After(until) {
			t.Fatalf("no server: %v\n%s", err, r.PostMortem())
		}
	}
}

func (c *redis) send(args ...string) {
	fmt.Fprintf(c.out, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(c.out, "$%d\r\n%s\r\n", len(a), a)
	}
	c.pending++
}

// do sends a command and returns its reply.
func (c *redis) do(args ...string) string {
	c.t.Helper()
	c.send(args...)
	return c.collect()
}

// collect reads all replies and returns the last.
func (c *redis) collect() (last string) {
	c.t.Helper()
	if err := c.out.Flush(); err != nil {
		c.t.Fatal(err)
	}
	for ; c.pending > 0; c.pending-- {
		var err error
		if last, err = c.reply(); errors.Is(err, io.EOF) && c.pending == 1 {
			c.pending = 0
			return "" // after SHUTDOWN
		} else if err != nil {
			c.t.Fatalf("the server: %v", err)
		}
	}
	return last
}

func (c *redis) reply() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	n, err := strconv.Atoi(line[1:])
	switch line[0] {
	case '$':
		if err != nil || n < 0 {
			return "", err
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(c.in, b)
		return string(b[:n]), err
	case '*':
		parts := make([]string, n)
		for i := range parts {
			if parts[i], err = c.reply(); err != nil {
				return "", err
			}
		}
		return strings.Join(parts, " "), nil
	}
	return line[1:], nil
}
