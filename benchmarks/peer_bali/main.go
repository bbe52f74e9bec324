// A Go program that does what bali does with an image, after its source: unzip all of it once to verify (SHA-512 of the
// uncompressed bytes), then unzip it again and write the files. bali's own binary is in no package registry.
package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha512"
	"io"
	"os"
	"path/filepath"
	"time"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func unzipped(file *os.File) *gzip.Reader {
	_, err := file.Seek(0, io.SeekStart)
	check(err)
	reader, err := gzip.NewReader(bufio.NewReader(file))
	check(err)
	return reader
}

func write(head *tar.Header, name string, body io.Reader) {
	mode := os.FileMode(head.Mode & 0o777)
	switch head.Typeflag {
	case tar.TypeDir:
		check(os.MkdirAll(name, mode))
	case tar.TypeSymlink:
		check(os.Symlink(head.Linkname, name))
	case tar.TypeLink:
		check(os.Link(filepath.Join(os.Args[2], head.Linkname), name))
	case tar.TypeReg:
		file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, mode)
		check(err)
		_, err = io.Copy(file, body)
		check(err)
		check(file.Close())
		check(os.Chtimes(name, time.Unix(0, 0), time.Unix(0, 0)))
	}
}

func main() {
	file, err := os.Open(os.Args[1])
	check(err)
	digest := sha512.New()
	_, err = io.Copy(digest, unzipped(file))
	check(err)
	archive := tar.NewReader(unzipped(file))
	check(os.Mkdir(os.Args[2], 0o755))
	for {
		head, err := archive.Next()
		if err == io.EOF {
			return
		}
		check(err)
		write(head, filepath.Join(os.Args[2], head.Name), archive)
	}
}
