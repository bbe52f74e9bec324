// What bali does to run an image, in Go's own library: the whole stream is inflated once to hash it, then again to unpack
// it into memory, then the program is started in it and waited for. No signature is looked at, which costs nothing.
//
//	peer_bali IMAGE FOLDER PROGRAM     FOLDER: an empty one, where memory is mounted
package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha512"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func inflated(path string) io.Reader {
	file, err := os.Open(path)
	must(err)
	plain, err := gzip.NewReader(file)
	must(err)
	return plain
}

func unpack(from io.Reader, root string) {
	for archive := tar.NewReader(from); ; {
		entry, err := archive.Next()
		if err == io.EOF {
			return
		}
		must(err)
		path := filepath.Join(root, entry.Name)
		switch entry.Typeflag {
		case tar.TypeDir:
			must(os.MkdirAll(path, 0o755))
		case tar.TypeReg:
			must(os.MkdirAll(filepath.Dir(path), 0o755))
			file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, os.FileMode(entry.Mode))
			must(err)
			_, err = io.Copy(file, archive)
			must(err)
			must(file.Close())
		case tar.TypeSymlink:
			must(os.Symlink(entry.Linkname, path))
		}
	}
}

func main() {
	runtime.LockOSThread() // a namespace is a thread's
	image, root := os.Args[1], os.Args[2]
	_, err := io.Copy(sha512.New(), inflated(image))
	must(err)
	must(syscall.Unshare(syscall.CLONE_NEWNS))
	must(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""))
	must(syscall.Mount("tmpfs", root, "tmpfs", 0, ""))
	unpack(inflated(image), root)
	program := exec.Command(os.Args[3])
	program.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	must(program.Run())
}
