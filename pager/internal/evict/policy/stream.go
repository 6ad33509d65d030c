// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/faultline-go/faultline/mem"
)

// streamMagic opens a recorded stream. What follows is DEFLATE over varints:
// the number of accesses, then the zigzag difference of each page number to
// the one before.
const streamMagic = "faultline-pages-1\n"

// maxStream bounds what a damaged file can make us allocate.
const maxStream = 64 << 20

// writeStream stores pages in the format of [readStream].
func writeStream(w io.Writer, pages []mem.Page) error {
	if _, err := io.WriteString(w, streamMagic); err != nil {
		return err
	}
	z, err := flate.NewWriter(w, flate.BestCompression)
	if err != nil {
		return err
	}
	buf := binary.AppendUvarint(nil, uint64(len(pages)))
	prev := mem.Page(0)
	for _, p := range pages {
		buf = binary.AppendVarint(buf, int64(p)-int64(prev))
		prev = p
	}
	if _, err := z.Write(buf); err != nil {
		return err
	}
	return z.Close()
}

// readStream returns the page numbers of a recorded stream. It fails on a
// foreign or cut file, and on page numbers that no address has.
func readStream(r io.Reader) ([]mem.Page, error) {
	magic := make([]byte, len(streamMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != streamMagic {
		return nil, errors.New("not a recorded page stream: record one with -condense")
	}
	z := bufio.NewReader(flate.NewReader(r))
	n, err := binary.ReadUvarint(z)
	if err != nil {
		return nil, fmt.Errorf("length: %w", err)
	}
	if n > maxStream {
		return nil, fmt.Errorf("%d accesses, more than the %d we read", n, maxStream)
	}
	var pages []mem.Page
	p := int64(0)
	for i := range n {
		d, err := binary.ReadVarint(z)
		if err != nil {
			return nil, fmt.Errorf("access %d of %d: %w", i, n, err)
		}
		p += d
		if p < 0 || p > math.MaxInt64>>mem.PageShift {
			return nil, fmt.Errorf("access %d of %d: page %#x is outside of any address space", i, n, p)
		}
		pages = append(pages, mem.Page(p))
	}
	return pages, nil
}

// loadStream reads the recorded stream in the file at path.
func loadStream(path string) ([]mem.Page, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	pages, err := readStream(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return pages, nil
}

// condense reads 64-bit page numbers, the output of testdata/record.c, and
// leaves out every access to a page that is among the last window accesses
// kept. Unlike a filter by recency this keeps a hot page coming up again and
// again, so that a policy which throws it out still pays for it.
func condense(r io.Reader, window int) ([]mem.Page, error) {
	var pages []mem.Page
	last := map[mem.Page]int{} // index after the latest record of a page
	in := bufio.NewReader(r)
	var b [8]byte
	for {
		if _, err := io.ReadFull(in, b[:]); errors.Is(err, io.EOF) {
			return pages, nil
		} else if err != nil {
			return nil, fmt.Errorf("raw stream: %w", err)
		}
		p := mem.Page(binary.NativeEndian.Uint64(b[:]))
		if at := last[p]; at > 0 && len(pages)-at < window {
			continue
		}
		pages = append(pages, p)
		last[p] = len(pages)
	}
}
