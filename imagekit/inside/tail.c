/* @tail FOLDER SINCE LINES: the ends of the files below a folder that were written to since then, as tail(1) shows
   them. SINCE is in seconds since 1970, or before now where it is negative. What is told has an end, whatever lies
   there: so many files, so many bytes of each. */

#include "builtin.h"
#include <dirent.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_FILES = 64, MOST_BYTES = 16384, DEEPEST = 8, LONGEST_PATH = 4096 };

static char path[LONGEST_PATH], end[MOST_BYTES];
static double since;
static int lines, files;

/* Where the last lines begin in what was read. */
static size_t last_lines(size_t size)
{
    size_t at = size;
    for (int n = 0; at; at--)
        if (end[at - 1] == '\n' && at < size && ++n >= lines) break;
    return at;
}

static void tell_tail(int folder, const char *name, const struct stat *s)
{
    off_t begin = s->st_size > MOST_BYTES ? s->st_size - MOST_BYTES : 0;
    int file = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    ssize_t n = file < 0 ? -1 : pread(file, end, sizeof end, begin);
    if (file >= 0) close(file);
    if (n < 0) return;
    size_t at = lines > 0 ? last_lines((size_t)n) : (size_t)n;
    for (char *p = path; *p; p++)
        if (*p == '\n') *p = '?';
    dprintf(1, "==> %s <==\n", path);
    put_out(end + at, (size_t)n - at);
    if (n && end[n - 1] != '\n') put_out("\n", 1);
    files++;
}

static void descend(int folder, size_t length, int depth)
{
    DIR *all = fdopendir(folder);
    for (struct dirent *entry; all && files < MOST_FILES && (entry = readdir(all));) {
        struct stat s;
        int n = snprintf(path + length, sizeof path - length, "/%s", entry->d_name);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") || n >= (int)(sizeof path - length)) continue;
        if (fstatat(folder, entry->d_name, &s, AT_SYMLINK_NOFOLLOW)) continue;
        if (S_ISREG(s.st_mode) && (double)s.st_mtim.tv_sec + s.st_mtim.tv_nsec / 1e9 >= since)
            tell_tail(folder, entry->d_name, &s);
        if (!S_ISDIR(s.st_mode) || depth >= DEEPEST) continue;
        int deeper = openat(folder, entry->d_name, O_RDONLY | O_CLOEXEC | O_DIRECTORY | O_NOFOLLOW);
        if (deeper >= 0) descend(deeper, length + (size_t)n, depth + 1);
    }
    if (all) closedir(all);
}

int tell_tails(char **argv)
{
    struct timespec now;
    int folder = open(argv[1], O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    if (folder < 0 || strlen(argv[1]) >= sizeof path) return complain_of(argv[1]);
    clock_gettime(CLOCK_REALTIME, &now);
    since = strtod(argv[2], NULL) + (argv[2][0] == '-' ? (double)now.tv_sec : 0);
    lines = atoi(argv[3]);
    strcpy(path, argv[1]);
    descend(folder, strlen(path), 0);
    return 0;
}
