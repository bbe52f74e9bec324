/* @wait [not] CONDITION: looks every 10 ms until it holds. What it sees is told when that changes, so that whoever
   gives up knows what was seen last. Conditions: tcp:PORT, http:PORT/PATH, file:PATH, command:LINE, log:PATH:REGEX. */

#include "builtin.h"
#include <netinet/in.h>
#include <regex.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { LOOK_MS = 10, TELL_MS = 100, COMMAND_MS = 100, LONGEST_LINE = 65536 };

static char seen[1024];

static int dial(const char *port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct timeval patience = {.tv_sec = 2};
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int family = AF_INET; family; family = family == AF_INET ? AF_INET6 : 0) {
        int line = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), is_v4 = family == AF_INET;
        setsockopt(line, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        setsockopt(line, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (!connect(line, is_v4 ? (void *)&v4 : (void *)&v6, is_v4 ? sizeof v4 : sizeof v6)) return line;
        if (is_v4) snprintf(seen, sizeof seen, "port %d: %s", atoi(port), strerror(errno));
        close(line);
    }
    return -1;
}

static int is_open(const char *port)
{
    int line = dial(port);
    if (line < 0) return 0;
    snprintf(seen, sizeof seen, "port %d is open", atoi(port));
    return !close(line);
}

static int answers(const char *where)
{
    char text[2048];
    const char *path = strchr(where, '/');
    int line = dial(where);
    if (line < 0) return 0;
    int n = snprintf(text, sizeof text, "GET %.1900s HTTP/1.0\r\nHost: localhost\r\n\r\n", path ? path : "/");
    ssize_t got = send(line, text, (size_t)n, MSG_NOSIGNAL) == n ? recv(line, text, sizeof text - 1, MSG_WAITALL) : -1;
    close(line);
    text[got > 0 ? got : 0] = 0;
    snprintf(seen, sizeof seen, "%.*s", (int)strcspn(text, "\r\n"), got > 0 ? text : "no answer");
    return got > 9 && !strncmp(text, "HTTP/", 5) && (text[9] == '2' || text[9] == '3');
}

static int exists(const char *path)
{
    struct stat s;
    int is_there = !stat(path, &s);
    snprintf(seen, sizeof seen, "%s: %s", path, is_there ? "is there" : strerror(errno));
    return is_there;
}

static int succeeds(const char *line)
{
    int status = 0;
    pid_t pid = fork();
    if (!pid) {
        int null = open("/dev/null", O_RDWR);
        for (int fd = 0; fd < 3; fd++) dup2(null, fd);
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    waitpid(pid, &status, 0);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    snprintf(seen, sizeof seen, "it ended with %d", code);
    if (code) poll(NULL, 0, COMMAND_MS);
    return !code;
}

/* Whether a line of the file, from its beginning on, matches; what was read is not read again. */
static int is_logged(const char *where)
{
    static char text[LONGEST_LINE + 1], path[4096];
    static size_t size;
    static off_t offset;
    static regex_t pattern;
    static int is_begun;
    const char *colon = strchr(where, ':');
    if (!colon || colon - where >= (int)sizeof path) return -1;
    snprintf(path, sizeof path, "%.*s", (int)(colon - where), where);
    if (!is_begun && regcomp(&pattern, colon + 1, REG_EXTENDED | REG_NOSUB)) return -1;
    is_begun = 1;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat s;
    if (file < 0) return snprintf(seen, sizeof seen, "%s: %s", path, strerror(errno)), 0;
    if (!fstat(file, &s) && s.st_size < offset) offset = 0, size = 0; /* it was cut, or is another one */
    for (ssize_t n; (n = pread(file, text + size, LONGEST_LINE - size, offset)) > 0;) {
        char *line = text, *end;
        offset += n;
        size += (size_t)n;
        for (; (end = memchr(line, '\n', size - (size_t)(line - text))); line = end + 1) {
            *end = 0;
            snprintf(seen, sizeof seen, "last line: %.900s", line);
            if (!regexec(&pattern, line, 0, NULL, 0)) return close(file), 1;
        }
        size -= (size_t)(line - text);
        memmove(text, line, size);
        if (size == LONGEST_LINE) size = 0;
    }
    close(file);
    return 0;
}

static const struct condition {
    const char *prefix;
    int (*holds)(const char *rest);
} CONDITIONS[] = {
    {"tcp:", is_open}, {"http:", answers}, {"file:", exists}, {"command:", succeeds}, {"log:", is_logged},
};

int wait_for(char **argv)
{
    static char told[sizeof seen];
    int is_not = !strcmp(argv[1], "not") && argv[2];
    const char *words = argv[1 + is_not];
    const struct condition *c = CONDITIONS, *end = CONDITIONS + sizeof CONDITIONS / sizeof *CONDITIONS;
    while (c < end && strncmp(words, c->prefix, strlen(c->prefix))) c++;
    for (int64_t due = 0; c < end; poll(NULL, 0, LOOK_MS)) {
        int holds = c->holds(words + strlen(c->prefix));
        if (holds < 0) break;
        int is_over = holds != is_not;
        if (strcmp(seen, told) && (is_over || now() >= due)) {
            dprintf(1, "%s\n", strcpy(told, seen));
            due = now() + TELL_MS * 1000000LL;
        }
        if (is_over) return 0;
    }
    dprintf(2, "%s: no such condition, or its pattern makes no sense\n", words);
    return 2;
}
