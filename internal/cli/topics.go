// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

// topics returns commands that run nothing and only have a help text.
func topics() []*cobra.Command {
	return []*cobra.Command{
		{
			Use:   "exit-codes",
			Short: "What the exit status means",
			Long: `    0   done
    1   it was tried and did not work
    2   the command line makes no sense
    3   the machine lacks something that was required (doctor)

faultline run and trace have the status of the program that they run, and if a
signal kills the program, the same signal kills faultline. Failures of faultline
itself, before the program begins, are

  125   faultline could not do it, or its command line makes no sense
  126   the program was found but is not executable
  127   the program was not found`,
		},
		{
			Use:   "sizes",
			Short: "How amounts of memory are written",
			Long: `An amount is a number, which may have a fraction, and a unit:

  4096, 4096B        bytes
  512K, 512KiB       1024 bytes each, and so on with M, G, T and P
  1.5G               rounded down to whole bytes
  25%                of the machine's memory, or of the memory limit of the
                     control group that faultline runs in if that is lower

Capitals do not matter. MB, GB and the like are refused: they mean powers of
ten to some and powers of two to others.`,
		},
		{
			Use:   "stores",
			Short: "Where cold pages go",
			Long: `A store is named by a URL:

  file:                  a file without a name in $TMPDIR or /var/tmp
  file:/PATH             the file at PATH: made with mode 0600, removed at the
                         end, refused if something else is there
  mem:                   faultline's own memory, compressed
  file:/PATH?max=20GiB   bounded; so with all of them

Pages are compressed by lz4; --compress zstd takes less space and some ten
times as long, and none is for data that does not compress. Each page has a
checksum, which is verified when it comes back.

When a store is full or its device fails, nothing is lost: pages stay in
memory, past the limit if need be, and faultline says so. A page that cannot
be read back is never replaced by zeros: who touches it gets SIGBUS.`,
		},
	}
}
