// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package realtest

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/faultline-go/faultline/runner/internal/runtest"
)

var both = []string{"mem:", "file:"}

// either returns both stores for a run that may take long, and one of them otherwise:
// each has some of the programs.
func either(short string) []string {
	if runtest.Smaller(1, 0) != 0 {
		return both
	}
	return []string{short}
}

// script returns the absolute path of a file in testdata.
func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// write makes a file of what f prints.
func write(t *testing.T, name string, f func(w *bufio.Writer)) string {
	t.Helper()
	file := runtest.Create(t, t.TempDir(), name)
	w := bufio.NewWriter(file)
	f(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// TestPython builds and sorts large lists and dicts.
func TestPython(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{runtest.Tool(t, "python3"), script(t, "lists.py"), strconv.Itoa(runtest.Smaller(300_000, 100_000))},
		Limit: uint64(runtest.Smaller(28, 8)) * runtest.MiB, Stores: either("file:"), Bounded: true, Stderr: true,
	})
}

// TestPythonProcesses forks workers with inherited memory, and starts other
// programs, H14.
func TestPythonProcesses(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{runtest.Tool(t, "python3"), script(t, "processes.py"), strconv.Itoa(runtest.Smaller(800_000, 170_000)), strconv.Itoa(runtest.Smaller(8, 2))},
		Limit: uint64(runtest.Smaller(24, 6)) * runtest.MiB, Stores: either("mem:"), Stderr: true,
	})
}

// TestSort sorts a file that is larger than the limit, in a buffer that is
// larger than the file.
func TestSort(t *testing.T) {
	sort := runtest.Tool(t, "sort")
	random := rand.New(rand.NewPCG(1, 2))
	in := write(t, "lines", func(w *bufio.Writer) {
		for range runtest.Smaller(1_200_000, 300_000) {
			fmt.Fprintf(w, "%016x %d of some words that repeat\n", random.Uint64(), random.IntN(1000))
		}
	})
	runtest.Same(t, runtest.Program{
		Args:  []string{sort, "-S", "1G", "--parallel=2", in},
		Limit: uint64(runtest.Smaller(28, 7)) * runtest.MiB, Stores: either("file:"), Stderr: true,
	})
}

// TestSQLite keeps a database in memory.
func TestSQLite(t *testing.T) {
	in := write(t, "sql", func(w *bufio.Writer) {
		fmt.Fprintf(w, `
create table t(id integer primary key, name text, amount integer, note text);
with recursive n(i) as (select 1 union all select i+1 from n where i < %d)
  insert into t select i, printf('%%016x', i * 2654435761 %% 4294967296), i * 7919 %% 100003, hex(i) || 'some text that repeats' from n;
create index by_name on t(name);
create index by_amount on t(amount, id);
select count(*), sum(amount), min(name), max(name) from t;
begin; update t set note = note || name where id %% 3 = 0; delete from t where id %% 7 = 1; commit;
select name, amount from t order by name limit 20;
select amount %% 100 as a, count(*), sum(length(note)), max(name) from t group by a order by a;
begin; update t set amount = 0; rollback;
select sum(amount) from t;
select t1.id, t2.id from t t1 join t t2 on t1.amount = t2.amount and t1.id < t2.id order by t1.id desc, t2.id limit 20;
drop index by_name; reindex; vacuum; pragma integrity_check;
`, runtest.Smaller(600_000, 150_000))
	})
	runtest.Same(t, runtest.Program{
		Args: []string{runtest.Tool(t, "sqlite3"), ":memory:"}, Stdin: in,
		Limit: uint64(runtest.Smaller(28, 7)) * runtest.MiB, Stores: either("mem:"), Bounded: true, Stderr: true,
	})
}

// TestNode fills the heap of another collector of garbage, which has threads
// and code of its own making.
func TestNode(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{runtest.Tool(t, "node"), script(t, "heap.js"), strconv.Itoa(runtest.Smaller(200_000, 60_000))},
		Limit: uint64(runtest.Smaller(48, 20)) * runtest.MiB, Stores: either("file:"), Bounded: true, Stderr: true,
	})
}

// TestGCC compiles a large file: the driver, the compiler and the assembler.
func TestGCC(t *testing.T) {
	gcc := runtest.Tool(t, "gcc")
	in := write(t, "large.c", func(w *bufio.Writer) {
		fmt.Fprintln(w, "#include <stdio.h>\n#include <string.h>\nstruct s { int a[4]; char *b; double c; };")
		n := runtest.Smaller(2500, 700)
		for i := range n {
			fmt.Fprintf(w, "static int f%d(struct s *s, int x) {\n\tfor (int i = 0; i < x; i++) {\n"+
				"\t\ts->a[i & 3] += i * %d + (int)strlen(s->b);\n\t\tif (s->a[1] > %d) s->c *= 1.%d;\n\t}\n"+
				"\tswitch (x %% 5) { case 0: return s->a[0]; case 1: return s->a[1] ^ %d; case 2: printf(\"%%d text %d\\n\", x); }\n"+
				"\treturn %s;\n}\n", i, i+1, i*3, i, i*7, i, map[bool]string{true: "x", false: fmt.Sprintf("f%d(s, x - 1)", i-1)}[i == 0])
		}
		fmt.Fprintf(w, "int main(void) { struct s s = { {0}, \"b\", 1 }; return f%d(&s, 3) & 1; }\n", n-1)
	})
	out := t.TempDir()
	runtest.Same(t, runtest.Program{
		Args: []string{runtest.Tool(t, "sh"), "-c", `"$0" -O1 -pipe -o large "$1" && ./large && od -An -tx1 -v large && rm large`, gcc, in},
		Dir:  out, Limit: uint64(runtest.Smaller(32, 16)) * runtest.MiB, Stores: either("mem:"), Stderr: true,
	})
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestShell runs a script of pipes and background jobs, which kills itself.
func TestShell(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{runtest.Tool(t, "bash"), script(t, "pipes.sh"), strconv.Itoa(runtest.Smaller(600_000, 300_000))},
		Limit: uint64(runtest.Smaller(10, 5)) * runtest.MiB, Stores: both, Stderr: true,
	})
}
