/* @follow PATH: what is added to a file from now on, also when another file takes its place, as logs are rotated. */

#include "builtin.h"
#include <sys/inotify.h>

enum { LOOK_MS = 1000, MISSING_MS = 50 };

static char data[16384];

static int pass_on(int file)
{
    ssize_t n;
    struct stat s;
    if (!fstat(file, &s) && lseek(file, 0, SEEK_CUR) > s.st_size) lseek(file, 0, SEEK_SET); /* it was cut */
    while ((n = read(file, data, sizeof data)) > 0)
        if (put_out(data, (size_t)n)) return -1;
    return 0;
}

/* Whether the path leads to another file than the open one. */
static int is_replaced(int file, const char *path)
{
    struct stat ours, theirs;
    return !stat(path, &theirs) && (fstat(file, &ours) || ours.st_ino != theirs.st_ino || ours.st_dev != theirs.st_dev);
}

int follow(char **argv)
{
    char folder[4096] = ".";
    char *slash = strrchr(argv[1], '/');
    int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), is_watched = 0;
    int file = open(argv[1], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (slash) snprintf(folder, sizeof folder, "%.*s", slash == argv[1] ? 1 : (int)(slash - argv[1]), argv[1]);
    if (file >= 0) lseek(file, 0, SEEK_END);
    dprintf(2, "following\n"); /* the host waits for this */
    for (;;) {
        struct pollfd fds[] = {{watch, POLLIN, 0}, {0, 0, 0}}; /* a stdin that was hung up ends us */
        if (!is_watched)
            is_watched = inotify_add_watch(watch, folder, IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE) >= 0;
        if (file >= 0 && pass_on(file)) return complain_of(argv[1]);
        if (is_replaced(file, argv[1])) {
            if (file >= 0) close(file);
            file = open(argv[1], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
            if (file >= 0) continue;
        }
        poll(fds, 2, is_watched ? LOOK_MS : MISSING_MS);
        if (fds[1].revents) return 0;
        while (read(watch, data, sizeof data) > 0) {}
    }
}
