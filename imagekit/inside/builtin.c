/* Built-in commands, "@read" and its like: what the host wants of the image's files, whatever programs the image has.

   They run in a forked child that stands where the image's own programs do, and speak as commands speak: output by
   stdout, one line of complaint by stderr, an exit code. The same program can be run by itself with such a name as its
   argv[0]: so a namespace, which has no agent, offers the same. */

#include "builtin.h"
#include <stdlib.h>
#include <sys/syscall.h>

enum { LAST_DESCRIPTOR = 1024, UNKNOWN = 127 };

static uint8_t data[65536];

int complain_of(const char *what)
{
    dprintf(2, "%s: %s\n", what, strerror(errno));
    return 1;
}

int put_out(const void *bytes, size_t size)
{
    for (const char *p = bytes; size;) {
        ssize_t n = write(1, p, size);
        if (n < 0) return -1;
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

/* @read PATH OFFSET LENGTH: never waits for what is not there yet, as in a pipe or a device. */
static int read_file(char **argv)
{
    int64_t offset = atoll(argv[2]), left = atoll(argv[3]);
    int file = open(argv[1], O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (file < 0 || (offset && lseek(file, offset, SEEK_SET) < 0)) return complain_of(argv[1]);
    while (left > 0) {
        ssize_t n = read(file, data, left < (int64_t)sizeof data ? (size_t)left : sizeof data);
        if (n == 0 || (n < 0 && errno == EAGAIN)) break;
        if (n < 0 || put_out(data, (size_t)n)) return complain_of(argv[1]);
        left -= n;
    }
    return 0;
}

/* Copy stdin into a file, and on to the disk, while it is digested. */
static int store(int file, uint64_t *size, char *hex)
{
    ssize_t n;
    struct sha256 sum;
    sha256_begin(&sum);
    for (*size = 0; (n = read(0, data, sizeof data)) > 0; *size += (uint64_t)n) {
        for (ssize_t done = 0, m; done < n; done += m)
            if ((m = write(file, data + done, (size_t)(n - done))) < 0) return -1;
        sha256_add(&sum, data, (size_t)n);
    }
    sha256_end_hex(&sum, hex);
    return n < 0 || fsync(file) ? -1 : 0;
}

/* @write PATH MODE: the whole of stdin takes the place of PATH at once, or nothing does. Tells digest and size. */
static int write_file(char **argv)
{
    char draft[4096], hex[65];
    uint64_t size;
    char *slash = strrchr(argv[1], '/');
    int folder = slash ? (int)(slash - argv[1]) + 1 : 0;
    int n = snprintf(draft, sizeof draft, "%.*s.imagekit-%d", folder, argv[1], (int)getpid());
    if (n >= (int)sizeof draft) errno = ENAMETOOLONG;
    int file = n < (int)sizeof draft ? open(draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600) : -1;
    if (file < 0) return complain_of(argv[1]);
    if (store(file, &size, hex) || fchmod(file, (mode_t)strtoul(argv[2], NULL, 8)) || rename(draft, argv[1])) {
        complain_of(argv[1]);
        unlink(draft);
        return 1;
    }
    dprintf(1, "%s %llu\n", hex, (unsigned long long)size);
    return 0;
}

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return "file";
    case S_IFDIR: return "directory";
    case S_IFLNK: return "symlink";
    case S_IFIFO: return "fifo";
    case S_IFSOCK: return "socket";
    case S_IFBLK: return "block";
    default: return "char";
    }
}

static int digest(const char *path, char *hex)
{
    ssize_t n;
    struct sha256 sum;
    int file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW);
    if (file < 0) return -1;
    sha256_begin(&sum);
    while ((n = read(file, data, sizeof data)) > 0) sha256_add(&sum, data, (size_t)n);
    sha256_end_hex(&sum, hex);
    return n < 0 ? -1 : close(file);
}

/* @stat PATH [sha256]: kind, size, mode, uid, gid, mtime, digest or "-", and where a symlink points. */
static int tell_file(char **argv)
{
    struct stat s;
    char hex[65] = "-", target[4097] = "";
    if (lstat(argv[1], &s)) return complain_of(argv[1]);
    if (S_ISLNK(s.st_mode) && readlink(argv[1], target, sizeof target - 1) < 0) return complain_of(argv[1]);
    if (argv[2] && S_ISREG(s.st_mode) && digest(argv[1], hex)) return complain_of(argv[1]);
    dprintf(1, "%s %lld %o %u %u %lld.%09ld %s %s\n", kind_of(s.st_mode), (long long)s.st_size, s.st_mode & 07777,
            s.st_uid, s.st_gid, (long long)s.st_mtim.tv_sec, s.st_mtim.tv_nsec, hex, target);
    return 0;
}

static const struct builtin {
    const char *name;
    int words; /* at least, its own name included */
    int (*run)(char **argv);
    const char *usage;
} BUILTINS[] = {
    {"@follow", 2, follow, "PATH"},
    {"@read", 4, read_file, "PATH OFFSET LENGTH"},
    {"@stat", 2, tell_file, "PATH [sha256]"},
    {"@tail", 4, tell_tails, "FOLDER SINCE LINES"},
    {"@terminal", 4, run_terminal, "ROWS COLUMNS ARGV..."},
    {"@wait", 2, wait_for, "[not] CONDITION"},
    {"@write", 3, write_file, "PATH MODE"},
};

int run_builtin(char **argv)
{
    int words = 0;
    while (argv[words]) words++;
    for (size_t i = 0; i < sizeof BUILTINS / sizeof *BUILTINS; i++) {
        const struct builtin *b = &BUILTINS[i];
        if (strcmp(argv[0], b->name)) continue;
        if (words >= b->words) return b->run(argv);
        dprintf(2, "usage: %s %s\n", b->name, b->usage);
        return 2;
    }
    dprintf(2, "%s: no such built-in command\n", argv[0]);
    return UNKNOWN;
}

/* Let go of all that an exec would have closed: this child holds the ends of other commands' pipes. */
void close_others(void)
{
    if (!syscall(SYS_close_range, 3, ~0U, 0)) return;
    for (int fd = 3; fd < LAST_DESCRIPTOR; fd++) close(fd);
}
