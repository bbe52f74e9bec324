/* @terminal ROWS COLUMNS ARGV...: a program on a terminal of its own, whose other end is our stdin and stdout. */

#include "builtin.h"
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

enum { UNKNOWN = 127 };

static char data[4096];

static void become(const char *name, char **argv)
{
    int line = open(name, O_RDWR);
    setsid();
    ioctl(line, TIOCSCTTY, 0);
    for (int fd = 0; fd < 3; fd++) dup2(line, fd);
    close_others();
    execvp(argv[0], argv);
    dprintf(2, "%s: %s\r\n", argv[0], strerror(errno));
    _exit(UNKNOWN);
}

static int copy(int from, int to)
{
    ssize_t n = read(from, data, sizeof data);
    for (ssize_t done = 0, m; done < n; done += m)
        if ((m = write(to, data + done, (size_t)(n - done))) <= 0) return 0;
    return n > 0;
}

int run_terminal(char **argv)
{
    struct winsize size = {.ws_row = (unsigned short)atoi(argv[1]), .ws_col = (unsigned short)atoi(argv[2])};
    int status = 0, line = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), is_open = 1;
    char *name = line >= 0 && !grantpt(line) && !unlockpt(line) ? ptsname(line) : NULL;
    if (!name) return complain_of("/dev/ptmx");
    ioctl(line, TIOCSWINSZ, &size);
    int held = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC); /* else our end is hung up until the program opens its own */
    pid_t pid = fork();
    if (pid < 0) return complain_of(argv[3]);
    if (!pid) become(name, argv + 3);
    for (int is_over = 0; !is_over;) {
        struct pollfd fds[] = {{line, POLLIN, 0}, {is_open ? 0 : -1, POLLIN, 0}};
        is_over = waitpid(pid, &status, WNOHANG) == pid;
        if (is_over) close(held); /* what is left is read, then it is hung up */
        poll(fds, 2, is_over ? 0 : 50);
        if (fds[1].revents) is_open = copy(0, line);
        if (fds[0].revents) copy(line, 1);
        while (is_over && copy(line, 1)) {}
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
