/* The floor of benchmarks/unpack.py: a .tar.gz inflated whole by libdeflate, its files written; nothing is verified,
 * nothing is checked. cc -O2 -o floor floor_unpack.c -l:libdeflate.so.0; ./floor FILE.tar.gz FOLDER */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

/* libdeflate.h of 1.14: what is used of it */
struct libdeflate_decompressor *libdeflate_alloc_decompressor(void);
int libdeflate_gzip_decompress_ex(struct libdeflate_decompressor *, const void *, size_t, void *, size_t, size_t *, size_t *);

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static size_t octal(const char *field, int width)
{
	size_t value = 0;
	for (; width-- && *field >= '0' && *field <= '7'; field++)
		value = value * 8 + *field - '0';
	return value;
}

/* PAX records: only path and linkpath are looked at */
static void records(char *at, char *end, char *name, char *link)
{
	while (at < end) {
		long length = strtol(at, NULL, 10);
		char *key = strchr(at, ' ') + 1;
		char *into = !strncmp(key, "path=", 5) ? name : !strncmp(key, "linkpath=", 9) ? link : NULL;
		if (length <= 0)
			exit(1);
		if (into) {
			char *value = strchr(key, '=') + 1;
			size_t size = at + length - 1 - value;
			memcpy(into, value, size);
			into[size] = 0;
		}
		at += length;
	}
}

static void make(const char *head, const char *name, const char *link, const char *body, size_t size)
{
	struct timeval times[2] = {{0, 0}, {0, 0}};
	mode_t mode = octal(head + 100, 8);
	size_t done = 0;
	int file;
	switch (head[156]) {
	case '5':
		if (mkdir(name, mode) && errno != EEXIST)
			die(name);
		return;
	case '2':
		if (symlink(link, name))
			die(name);
		return;
	case '1':
		if (linkat(AT_FDCWD, link, AT_FDCWD, name, 0))
			die(name);
		return;
	}
	file = open(name, O_WRONLY | O_CREAT | O_EXCL, mode);
	if (file < 0)
		die(name);
	while (done < size) {
		ssize_t wrote = write(file, body + done, size - done);
		if (wrote < 0)
			die(name);
		done += wrote;
	}
	if (futimes(file, times))
		die(name);
	close(file);
}

int main(int count, char **words)
{
	struct stat found;
	char name[4097] = "", link[4097] = "", *packed, *tar;
	size_t size, at = 0, used, made;
	int file = count == 3 ? open(words[1], O_RDONLY) : -1;
	if (file < 0 || fstat(file, &found))
		die("usage: floor FILE.tar.gz FOLDER");
	packed = malloc(found.st_size);
	if (read(file, packed, found.st_size) != found.st_size)
		die(words[1]);
	size = (size_t)20 * found.st_size;
	tar = malloc(size);
	if (libdeflate_gzip_decompress_ex(libdeflate_alloc_decompressor(), packed, found.st_size, tar, size, &used, &made))
		return 1;
	if (mkdir(words[2], 0755) || chdir(words[2]))
		die(words[2]);
	umask(0);
	while (at + 512 <= made && tar[at]) {
		char *head = tar + at, *body = head + 512;
		size = octal(head + 124, 12);
		at += 512 + (size + 511) / 512 * 512;
		if (head[156] == 'x') {
			records(body, body + size, name, link);
			continue;
		}
		if (!*name)
			snprintf(name, sizeof name, "%.100s", head);
		if (!*link)
			snprintf(link, sizeof link, "%.100s", head + 157);
		make(head, name, link, body, size);
		*name = *link = 0;
	}
	return 0;
}
