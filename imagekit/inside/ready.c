/* Readiness: one process looks at all conditions, every 10 ms at first, and forks for none but command:. */

#include "boot.h"
#include <netinet/in.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

/* Without a condition a service is ready as soon as it runs: start_service holds a lock until its exec. */
static int is_running(const struct service *s)
{
    char path[LONGEST];
    snprintf(path, sizeof path, SERVICES "/%s/run", s->name);
    int file = open(path, O_RDONLY | O_CLOEXEC), is_free = !flock(file, LOCK_SH | LOCK_NB);
    close(file);
    return is_free;
}

/* Connect to a port of ours. It is done or refused at once, but for a listener that does not keep up; and it costs far
   less than a look into /proc/net/tcp, where the kernel walks through all its tables. IPv6 takes turns with IPv4 after
   half a second, since few services listen there alone and its first use costs 25 ms under emulation. */
static int dial(struct service *s, const char *port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct timeval patience = {.tv_usec = 100000};
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->family = s->family == AF_INET && milliseconds() - s->began > 500 ? AF_INET6 : AF_INET;
    s->was_asked = 0;
    s->last = milliseconds();
    s->socket = socket(s->family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(s->socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (s->family == AF_INET) return connect(s->socket, (struct sockaddr *)&v4, sizeof v4);
    return connect(s->socket, (struct sockaddr *)&v6, sizeof v6);
}

static int hang_up(struct service *s)
{
    close(s->socket);
    s->socket = -1;
    return 0;
}

static int is_tcp_ready(struct service *s, const char *port)
{
    int is_open = !dial(s, port);
    hang_up(s);
    return is_open;
}

/* A step of a conversation that waits for no answer; 2xx and 3xx are ready. It may take two seconds. */
static int is_http_ready(struct service *s, const char *where)
{
    char text[LONGEST + 100];
    const char *path = strchr(where, '/');
    if (s->socket < 0 && dial(s, where)) return hang_up(s);
    if (!s->was_open) event("service open %s", s->name);
    s->was_open = 1;
    if (!s->was_asked) {
        int n = snprintf(text, sizeof text, "GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n", path ? path : "/");
        if (send(s->socket, text, (size_t)n, MSG_NOSIGNAL) != n) return hang_up(s);
        s->was_asked = 1;
    }
    ssize_t n = recv(s->socket, text, sizeof text - 1, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return milliseconds() - s->last > 2000 ? hang_up(s) : 0;
    hang_up(s);
    return n > 9 && !strncmp(text, "HTTP/", 5) && (text[9] == '2' || text[9] == '3');
}

/* Run the condition's script, at most ten times a second; one that takes ten seconds is killed. */
static int is_command_ready(struct service *s)
{
    char path[LONGEST], *argv[] = {path, NULL}, *env[] = {PATH, "HOME=/root", NULL};
    int status;
    if (s->pid && waitpid(s->pid, &status, WNOHANG) == s->pid) {
        s->pid = 0;
        return WIFEXITED(status) && !WEXITSTATUS(status);
    }
    if (s->pid && milliseconds() - s->last > 10000) kill(-s->pid, SIGKILL);
    if (s->pid || milliseconds() - s->last < 100) return 0;
    s->last = milliseconds();
    snprintf(path, sizeof path, "/etc/imagekit/ready/%s", s->name);
    if ((s->pid = fork())) return 0;
    (void)!nice(-19);
    setsid();
    execve(path, argv, env);
    _exit(127);
}

static int holds(struct service *s)
{
    const char *condition = s->condition;
    if (!strncmp(condition, "tcp:", 4)) return is_tcp_ready(s, condition + 4);
    if (!strncmp(condition, "http:", 5)) return is_http_ready(s, condition + 5);
    if (!strncmp(condition, "file:", 5)) return !access(condition + 5, F_OK);
    if (!strncmp(condition, "command:", 8)) return is_command_ready(s);
    return is_running(s);
}

/* Learn from new events which services run. */
static void read_events(FILE *file, struct service *all, int n)
{
    char line[LONGEST + 64], verb[32], name[256];
    for (clearerr(file); fgets(line, sizeof line, file);) {
        if (sscanf(line, "%*s service %31s %255s", verb, name) != 2) continue;
        if (!strcmp(verb, "ready") || !strcmp(verb, "open")) continue; /* ours */
        for (struct service *s = all; s < all + n; s++)
            if (!strcmp(s->name, name)) {
                s->is_started = !strcmp(verb, "start"); /* exit and failed end it */
                s->began = milliseconds();
            }
    }
}

/* Look at one service. What it said is read again after the look: a failed exec says so before it frees the lock. */
static void look_at(struct service *s, FILE *events, struct service *all, int n)
{
    if (!holds(s)) return;
    read_events(events, all, n);
    if (!s->is_started) return;
    s->is_ready = 1;
    event("service ready %s", s->name);
}

/* Milliseconds until the next look: 10, and longer for a service that takes long anyway. */
static int64_t pause_for(const struct service *s)
{
    int64_t waited = (milliseconds() - s->began) / 20;
    return waited < 10 ? 10 : waited > 100 ? 100 : waited;
}

/* Report every service once when it is ready, and the whole when all are. */
int report_ready(void)
{
    struct service *all;
    int n = read_table(&all), missing = n;
    FILE *events = fopen(EVENTS, "re");
    if (!events) return 1;
    (void)!nice(19); /* it must not slow down what it waits for */
    for (int i = 0; i < n; i++) all[i].socket = -1;
    while (missing) {
        int64_t pause = -1;
        missing = 0;
        read_events(events, all, n);
        for (struct service *s = all; s < all + n; s++) {
            if (s->is_started && !s->is_ready) look_at(s, events, all, n);
            missing += !s->is_ready;
            if (s->is_started && !s->is_ready && (pause < 0 || pause_for(s) < pause)) pause = pause_for(s);
        }
        if (missing) wait_for_growth(pause < 0 ? -1 : milliseconds() + pause);
    }
    event("ready");
    return 0;
}
