// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/internal/doctor"
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/internal/size"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/runner"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/storeurl"
	"github.com/faultline-go/faultline/tracee"
)

// runOptions are the flags of run.
type runOptions struct {
	limit    size.Size
	store    string
	compress string
	stats    bool
	progress string
	engine   string
}

func newRun() *cobra.Command {
	o := runOptions{limit: size.Percent(50)}
	cmd := &cobra.Command{
		Use:   "run [FLAGS] -- PROGRAM [ARG...]",
		Short: "Run a program in bounded memory",
		Long: "Run starts PROGRAM and bounds the resident memory of it and of all that it\n" +
			"starts: heaps, anonymous mappings and thread stacks. Pages beyond the limit are\n" +
			"compressed into a store and come back when they are touched. The program needs\n" +
			"no change and sees none; the exit status is its own. See also the topics\n" +
			"sizes, stores and exit-codes.",
		Example: "  faultline run --limit 64MiB -- sort -S 1G words.txt\n" +
			"  faultline run --limit 25% --stats -- python3 train.py\n" +
			"  faultline run --limit 512MiB --store file:/scratch/pages?max=20GiB -- ./server",
		Annotations: map[string]string{ownStatus: strconv.Itoa(ExitOwn)},
		Args:        aProgram,
		RunE:        func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the program is the program's
	f.Var(&o.limit, "limit", "resident memory of the whole tree: a size, or a share of the machine's memory")
	f.StringVar(&o.store, "store", "file:", "where cold pages go, a `URL`: "+storeurl.Known)
	f.StringVar(&o.compress, "compress", "lz4", "`CODEC` for them: lz4, zstd or none")
	f.StringVar(&o.engine, "engine", "auto", "`WHO` tells of page faults: auto, kernel or user")
	f.BoolVar(&o.stats, "stats", false, "print a summary to standard error at the end")
	f.StringVar(&o.progress, "progress", "auto", "`FORM` of reports while it runs: auto, plain, json or none")
	for name, complete := range map[string]cobra.CompletionFunc{
		"limit":    cobra.NoFileCompletions,
		"store":    completeStore,
		"compress": cobra.FixedCompletions([]string{"lz4", "zstd", "none"}, cobra.ShellCompDirectiveNoFileComp),
		"engine":   cobra.FixedCompletions(engineNames, cobra.ShellCompDirectiveNoFileComp),
		"progress": cobra.FixedCompletions(progressNames, cobra.ShellCompDirectiveNoFileComp),
	} {
		// It fails only for a flag that does not exist.
		_ = cmd.RegisterFlagCompletionFunc(name, complete)
	}
	return cmd
}

// aProgram is the arguments of commands that run a program: there must be one.
func aProgram(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError(cmd, "no program is named")
	}
	return nil
}

// completeStore completes the scheme. Shells complete no path behind one.
func completeStore(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, u := range []string{
		cobra.CompletionWithDesc("file:", "a file, unnamed or file:/PATH"),
		cobra.CompletionWithDesc("mem:", "the memory of faultline"),
	} {
		if strings.HasPrefix(u, typed) {
			out = append(out, u)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// run is the command. It returns an *ExitError with the program's status, or
// does not return when the program was killed by a signal.
func (o *runOptions) run(cmd *cobra.Command, args []string) error {
	limit, err := o.limit.Resolve()
	if err != nil {
		return usageError(cmd, "--limit: %w", err)
	}
	if limit < pager.MinLimit {
		return usageError(cmd, "--limit %v is less than the smallest possible, %v", o.limit, size.Bytes(pager.MinLimit))
	}
	codec, err := store.ParseCodec(o.compress)
	if err != nil {
		return usageError(cmd, "--compress: %w", err)
	}
	mode, err := parseProgress(o.progress)
	if err != nil {
		return usageError(cmd, "--progress: %w", err)
	}
	if _, err := storeurl.Parse(o.store); err != nil {
		return usageError(cmd, "--store: %w", err)
	}
	path, err := lookUp(args[0])
	if err != nil {
		return err
	}
	asJSON, err := cmd.Flags().GetBool("json")
	if err != nil {
		return err
	}
	engine, err := o.chooseEngine(cmd, asJSON)
	if err != nil {
		return err
	}
	st, err := storeurl.Open(o.store, codec)
	if err != nil {
		return err
	}
	status, stats, err := o.supervise(cmd, st, limit, path, args, mode, engine)
	closeErr := st.Close()
	if err != nil {
		return startError(args[0], err)
	}
	// From here on the program has ended, and the status is its own whatever
	// becomes of the rest.
	if closeErr != nil {
		warn(cmd, asJSON, fmt.Sprintf("closing the store: %v", closeErr))
	}
	if o.stats {
		// If standard error is gone, there is nobody to tell that it is.
		_ = writeStats(cmd.ErrOrStderr(), stats, asJSON)
	}
	if status.Signal() != 0 {
		tracee.MirrorExit(status) // does not return
	}
	return &ExitError{Code: status.Code()}
}

var engineNames = []string{"auto", "kernel", "user"}

// chooseEngine says who tells of faults, and tells the user if it is not the kernel
// though nobody has asked for that.
func (o *runOptions) chooseEngine(cmd *cobra.Command, asJSON bool) (runner.Engine, error) {
	switch o.engine {
	case "user":
		return runner.User, doctor.CheckProvide()
	case "kernel":
		return runner.Kernel, doctor.CheckRun()
	case "auto":
	default:
		return 0, usageError(cmd, "--engine %q is none of %s", o.engine, strings.Join(engineNames, ", "))
	}
	refused := doctor.CheckRun()
	if refused == nil {
		return runner.Kernel, nil
	}
	if doctor.CheckProvide() != nil {
		return 0, refused // the better one, and it says what is missing
	}
	warn(cmd, asJSON, fmt.Sprintf("faultline tells of page faults by itself (--engine user), which is slower, since the kernel's call cannot be used: %v", refused))
	return runner.User, nil
}

// supervise runs the program to its end.
func (o *runOptions) supervise(cmd *cobra.Command, st store.Store, limit uint64, path string, args []string,
	mode progressMode, engine runner.Engine) (tracee.Status, runner.Stats, error) {
	tune()
	line := newProgress(cmd.ErrOrStderr(), mode)
	log := slog.New(&lineHandler{w: line})
	r, err := runner.Start(runner.Options{
		Path: path, Argv: args, Env: os.Environ(),
		Limit: limit, Store: st, Log: log, Engine: engine,
	})
	if err != nil {
		return tracee.Status{}, runner.Stats{}, err
	}
	place.Quiet() // tune has made places enough
	line.start(r.Stats)
	frugal := beFrugal(r.Stats)
	status, err := r.Wait()
	frugal()
	line.stop()
	return status, r.Stats(), err
}

// tune fits Go's runtime to serving faults. What is allocated is little, so the
// collector can wait.
func tune() {
	makePlaces()
	debug.SetGCPercent(400)
}

// makePlaces gives Go's scheduler more places than there are threads in long system
// calls. A serving thread keeps its place while it is in a short one, and even while the
// kernel lets it wait for a processor; the others need places of their own.
func makePlaces() { runtime.GOMAXPROCS(runtime.NumCPU() + 6) }

const (
	// ownMemory is what Go's runtime may use by itself, its buffers included,
	// of the 32 MiB that the manual promises; the rest is the program text.
	ownMemory = 24 << 20
	// pageMemory is for a page that the pager knows of: its entry.
	pageMemory = 24
)

// beFrugal lets the collector run as seldom as tune asks, but for what would
// take more memory than we promise to. A fixed bound would not do: with many
// pages outside all of it were in use, and the collector would never rest. The
// caller must call the function that it returns.
func beFrugal(stats func() runner.Stats) (end func()) {
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		for {
			pg := stats().Pager
			metrics.Read(live)
			pages := (uint64(pg.Resident) + uint64(pg.Outside)) / mem.PageSize
			// What is needed all the same, such as pages that a full store
			// has left to us, must not keep the collector busy.
			need := live[0].Value.Uint64() + live[0].Value.Uint64()/4
			debug.SetMemoryLimit(int64(max(ownMemory+pageMemory*pages, need+ownMemory/3)))
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
	}
}

// lookUp finds a program as a shell does.
func lookUp(name string) (string, error) {
	path, err := exec.LookPath(name)
	switch {
	case err == nil, errors.Is(err, exec.ErrDot):
		return path, nil
	case errors.Is(err, fs.ErrPermission):
		return "", &ExitError{Code: ExitNotExecutable, Err: fmt.Errorf("%s: not executable", name)}
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return "", &ExitError{Code: ExitNotFound, Err: fmt.Errorf("%s: not found", name)}
	}
	if e, ok := errors.AsType[*exec.Error](err); ok {
		err = fmt.Errorf("%s: %w", name, e.Err)
	}
	return "", &ExitError{Code: ExitNotExecutable, Err: err}
}

// startError gives an error of ours the status that a shell would use.
func startError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &ExitError{Code: ExitNotFound, Err: fmt.Errorf("%s: %w", name, err)}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, tracee.ErrCompat):
		return &ExitError{Code: ExitNotExecutable, Err: fmt.Errorf("%s: %w", name, err)}
	}
	return err
}
