/* The guest agent: runs commands for the host and tells it the events of the boot, over a serial line.

   It rides in an extra initrd that is appended at boot only, and the kernel starts it as PID 1 by rdinit=. It forks;
   PID 1 then becomes the image's own /init, unchanged, and the child serves the line. The child lives in a mount
   namespace of its own, so that it neither sees nor holds the image's mounts, and it takes its folder out of the
   image's tree. Commands run in PID 1's mount namespace and root, whatever these are when the command comes: before
   and after a switch_root.

   The wire format stands in imagekit/channel.py, the other end. One loop around poll() does everything and never
   blocks: not on the line (the host may not read), not on a command (it may not read its stdin). Nothing is polled by
   time but for the events file until it exists, because every wake-up delays a boot under emulation. */

#include "agent.h"
#include <sched.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#define FOLDER ".imagekit"
#define EVENTS "/proc/1/root/run/imagekit/events"
#define MILLISECOND 1000000LL /* in the unit of now() */

static int events = -1, watch = -1; /* the events file, and what wakes us when it grows */

static void open_events(void)
{
    events = open(EVENTS, O_RDONLY | O_CLOEXEC);
    if (events >= 0) inotify_add_watch(watch, EVENTS, IN_MODIFY);
}

/* Send the whole lines that were added; a line longer than a frame is cut in two. */
static void forward_events(void)
{
    static char text[MAX_PAYLOAD];
    static size_t size;
    char noticed[1024];
    while (read(watch, noticed, sizeof noticed) > 0) {}
    while (has_room()) {
        ssize_t n = read(events, text + size, sizeof text - size);
        if (n <= 0 && size < sizeof text) return;
        size += n > 0 ? (size_t)n : 0;
        for (char *end; has_room() && size;) {
            size_t line = (end = memchr(text, '\n', size)) ? (size_t)(end - text) : size;
            if (!end && size < sizeof text) break;
            send_frame(EVENT, 0, text, line);
            size -= line + (end ? 1 : 0);
            memmove(text, text + line + (end ? 1 : 0), size);
        }
    }
}

static void obey(int kind, int stream, const uint8_t *payload, size_t size)
{
    if (kind == PING) send_clock(PONG, payload, size);
    if (kind == KILL) kill_command(stream);
    if (kind == RENEW) renew(payload, size);
    if (kind == FREE) take_free(payload, size);
    if (size < 9) return;
    if (kind == EXEC) take_request(stream, payload + 9, size - 9, get64(payload), payload[8]);
    if (kind == STDIN) take_stdin(stream, payload + 9, size - 9, get64(payload), payload[8]);
}

/* Milliseconds that poll() may sleep. The events file is looked for ever more seldom: some images have none. */
static int until_next(int64_t began)
{
    int64_t time = now(), next = kill_late(time);
    int64_t pause = (time - began) / 8;
    if (pause < 10 * MILLISECOND) pause = 10 * MILLISECOND;
    if (pause > 250 * MILLISECOND) pause = 250 * MILLISECOND;
    if (events < 0 && time + pause < next) next = time + pause;
    if (next == INT64_MAX) return -1;
    return next - time > INT32_MAX * MILLISECOND ? INT32_MAX : (int)((next - time) / MILLISECOND) + 1;
}

static void serve(int children)
{
    enum { LINE, EVENTS_FILE, CHILDREN, COMMANDS };
    char caught[sizeof(struct signalfd_siginfo) * 4];
    for (int64_t began = now();;) {
        struct pollfd fds[COMMANDS + COMMAND_FDS];
        fds[LINE] = line_to_poll();
        fds[EVENTS_FILE] = (struct pollfd){has_room() ? watch : -1, POLLIN, 0};
        fds[CHILDREN] = (struct pollfd){children, POLLIN, 0};
        commands_to_poll(fds + COMMANDS);
        poll(fds, COMMANDS + COMMAND_FDS, until_next(began));
        if (fds[CHILDREN].revents) {
            while (read(children, caught, sizeof caught) > 0) {}
            reap_commands();
        }
        if (events < 0) open_events();
        if (events >= 0) forward_events(); /* before we obey: whoever asks how a service fares has heard of its end */
        if (fds[LINE].revents & (POLLIN | POLLHUP)) read_line(obey);
        serve_commands(fds + COMMANDS);
        flush_line();
    }
}

/* The value of NAME=VALUE on the kernel's command line, cut to fit. */
static int argument(const char *name, char *value, size_t size)
{
    static char text[8192];
    size_t length = strlen(name), n = 0;
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t got = read(file, text, sizeof text - 1);
    text[got > 0 ? got : 0] = 0;
    close(file);
    for (char *p = text; (p = strstr(p, name)); p += length) {
        if ((p != text && p[-1] != ' ') || p[length] != '=') continue;
        for (p += length + 1; *p > ' ' && n < size - 1; p++) value[n++] = *p;
        value[n] = 0;
        return 1;
    }
    return 0;
}

static void complain(const char *what)
{
    char text[200];
    int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    int size = snprintf(text, sizeof text, "<3>imagekit agent: %s: %s\n", what, strerror(errno));
    (void)!write(log, text, (size_t)size);
    close(log);
}

/* Move to a root of our own, and take our folder out of the image's tree: commands shall see what was built. */
static int move_out(void)
{
    int image = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (unshare(CLONE_NEWNS) || mount("", "/", "", MS_REC | MS_PRIVATE, NULL)) return -1;
    if (mount("agent", "/" FOLDER, "tmpfs", 0, "mode=0700") || chdir("/" FOLDER)) return -1;
    if (mkdir("proc", 0555) || mount("proc", "proc", "proc", 0, NULL)) return -1;
    if (mkdir("dev", 0755) || mount("dev", "dev", "devtmpfs", 0, NULL)) return -1;
    if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".")) return -1; /* an initramfs cannot be pivoted away from */
    unlinkat(image, FOLDER "/agent", 0);
    unlinkat(image, FOLDER, AT_REMOVEDIR);
    return close(image);
}

/* Become what a process that outlives everything is: no signal but KILL ends it, and memory is taken from others. */
static int harden(void)
{
    sigset_t child;
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    (void)!write(score, "-1000", 5);
    close(score);
    setsid();
    for (int s = 1; s < 32; s++) signal(s, s == SIGCHLD ? SIG_DFL : SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    return signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(int argc, char **argv)
{
    char name[64];
    if (argc && argv[0][0] == '@') return run_builtin(argv);
    if (getpid() == 1 && fork()) {
        argv[0] = "/init";
        execv("/init", argv);
        complain("/init");
        return 1;
    }
    argv[0][0] = '@'; /* systemd's sign for: not to be killed on the way down */
    free_streams();
    if (move_out() || !argument("imagekit.nonce", nonce, sizeof nonce) ||
        !argument("imagekit.channel", name, sizeof name) || open_line(name) < 0) {
        complain("no channel");
        return 1;
    }
    watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    send_clock(HELLO, nonce, strlen(nonce));
    serve(harden());
}
