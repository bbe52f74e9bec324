/* The commands that the host runs: up to eight at a time, each a stream of frames and three pipes. */

#include "agent.h"
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

struct command {
    int stream;                   /* -1: this slot is free */
    pid_t pid;                    /* 0: its request is not complete yet */
    int in, out, err;             /* our ends of its pipes, -1 when closed */
    int status, has_ended;        /* as waitpid says */
    int was_late;                 /* killed on its time-out */
    int is_held;                  /* a bulk of it is under way: nothing may overtake that */
    int64_t began, deadline;      /* deadline 0: none */
    uint64_t stdin_taken;         /* bytes that went through the pipe */
    int stdin_ended;
    size_t piece_size, piece_done; /* the piece of stdin that is on its way into the pipe */
    int has_piece, is_last_piece;
    size_t request_size;
    uint8_t piece[MAX_PIECE], request[MAX_REQUEST]; /* not cleared: a slot costs memory when it is used */
};

static struct command commands[MAX_STREAMS];
static int ended[MAX_ENDED], next_ended; /* streams that were used: a late repetition must not run a command twice */

void free_streams(void)
{
    for (int i = 0; i < MAX_STREAMS; i++) commands[i].stream = -1;
}

static struct command *find(int stream)
{
    for (int i = 0; i < MAX_STREAMS; i++)
        if (commands[i].stream == stream) return &commands[i];
    return NULL;
}

static void close_end(int *end)
{
    if (*end >= 0) close(*end);
    *end = -1;
}

static void release(struct command *c)
{
    close_end(&c->in);
    close_end(&c->out);
    close_end(&c->err);
    ended[next_ended++ % MAX_ENDED] = c->stream;
    c->stream = -1;
}

static void send_ack(int kind, int stream, uint64_t taken, int has_last)
{
    uint8_t payload[10] = {(uint8_t)kind};
    put(payload + 1, taken, 8);
    payload[9] = (uint8_t)has_last;
    send_frame(ACK, stream, payload, sizeof payload);
}

static void send_error(int stream, int number, const char *what)
{
    uint8_t payload[4 + 400];
    put(payload, (uint64_t)number, 4);
    snprintf((char *)payload + 4, sizeof payload - 4, "%s: %s", what, strerror(number));
    send_frame(ERROR, stream, payload, 4 + strlen((char *)payload + 4));
}

/* ---- starting one ---- */

/* In the child: stand where PID 1 stands now. Its root is taken as well as its namespace, for it may have chroot'ed. */
static int enter_image(void)
{
    int space = open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC), root = open("/proc/1/root", O_PATH | O_CLOEXEC);
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    (void)!write(score, "0", 1);
    return space < 0 || root < 0 || setns(space, CLONE_NEWNS) || fchdir(root) || chroot(".") ? -1 : 0;
}

struct failure { /* of the way to an exec */
    int error, is_folder; /* errno, and whether it is about the working directory */
};

static void become(char **argv, char **env, const char *cwd, int pipes[4][2])
{
    struct failure failure = {0};
    sigset_t none;
    setsid(); /* a process group of its own, to be killed as a whole */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
    dup2(pipes[0][0], 0);
    dup2(pipes[1][1], 1);
    dup2(pipes[2][1], 2);
    if (!enter_image() && !(failure.is_folder = chdir(cwd))) {
        if (argv[0][0] == '@') {
            close_others();
            _exit(run_builtin(argv));
        }
        environ = env; /* execvp looks the command up in the PATH of this one */
        execvp(argv[0], argv);
    }
    failure.error = errno;
    (void)!write(pipes[3][1], &failure, sizeof failure);
    _exit(127);
}

static int make_pipes(int pipes[4][2])
{
    memset(pipes, -1, 4 * sizeof *pipes);
    for (int i = 0; i < 4; i++)
        if (pipe2(pipes[i], O_CLOEXEC)) return -1;
    fcntl(pipes[0][1], F_SETFL, O_NONBLOCK);
    fcntl(pipes[1][0], F_SETFL, O_NONBLOCK);
    fcntl(pipes[2][0], F_SETFL, O_NONBLOCK);
    return 0;
}

/* Start a command: no failure is told once its exec has happened. */
static struct failure start(struct command *c, char **argv, char **env, const char *cwd)
{
    struct failure failure = {0};
    int pipes[4][2]; /* stdin, stdout, stderr, and one that an exec closes and a failure is written to */
    c->began = now();
    if (make_pipes(pipes) || (c->pid = fork()) < 0) failure.error = errno;
    if (!failure.error && !c->pid) become(argv, env, cwd, pipes);
    for (int i = 0; i < 4; i++) close_end(&pipes[i][i ? 1 : 0]);
    if (!failure.error && read(pipes[3][0], &failure, sizeof failure) > 0) waitpid(c->pid, NULL, 0);
    close_end(&pipes[3][0]);
    c->in = pipes[0][1];
    c->out = pipes[1][0];
    c->err = pipes[2][0];
    return failure;
}

/* Split a request into its words; 0 when it is none. */
static int split(struct command *c, char **words, uint32_t count)
{
    char *p = (char *)c->request + 12, *end = (char *)c->request + c->request_size;
    for (uint32_t i = 0; i < count; i++) {
        char *stop = memchr(p, 0, (size_t)(end - p));
        if (!stop) return 0;
        words[i] = p;
        p = stop + 1;
    }
    return p == end;
}

/* The variables that most commands get, in full (ENVIRONMENT in channel.py). */
static void complete(char **env)
{
    for (; *env; env++) {
        if (!strcmp(*env, "PATH")) *env = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        if (!strcmp(*env, "HOME")) *env = "HOME=/root";
    }
}

/* Tell how a stream ended, which is then free again. */
static void tell_end(struct command *c)
{
    uint8_t payload[13];
    put(payload, (uint64_t)(WIFEXITED(c->status) ? WEXITSTATUS(c->status) : 128 + WTERMSIG(c->status)), 4);
    payload[4] = (uint8_t)c->was_late;
    put(payload + 5, (uint64_t)(now() - c->began), 8);
    send_frame(EXIT, c->stream, payload, sizeof payload);
    release(c);
}

/* @health, which is asked after every test, costs no fork. */
static void answer_health(struct command *c)
{
    const char *text;
    c->began = now();
    for (size_t size = tell_health(&text); size;) {
        size_t piece = size < MAX_PAYLOAD ? size : MAX_PAYLOAD;
        send_frame(STDOUT, c->stream, text, piece);
        text += piece;
        size -= piece;
    }
    tell_end(c);
}

static void run(struct command *c)
{
    static char *words[MAX_REQUEST]; /* working directory, arguments, NULL, variables, NULL */
    uint32_t ms = get32(c->request), argc = get32(c->request + 4), envc = get32(c->request + 8);
    struct failure failure = {EBADMSG, 0};
    if (c->request_size >= 12 && argc && argc < MAX_REQUEST / 4 && envc < MAX_REQUEST / 4 &&
        split(c, words, 1 + argc + envc)) {
        memmove(words + argc + 2, words + argc + 1, envc * sizeof *words);
        words[argc + 1] = words[argc + 2 + envc] = NULL;
        complete(words + argc + 2);
        if (!strcmp(words[1], "@health")) return answer_health(c);
        c->deadline = ms ? now() + ms * 1000000LL : 0;
        failure = start(c, words + 1, words + argc + 2, words[0]);
    }
    if (!failure.error) return;
    send_error(c->stream, failure.error, failure.error == EBADMSG ? "request" : words[failure.is_folder ? 0 : 1]);
    release(c);
}

static struct command *claim(int stream)
{
    struct command *c = find(-1);
    for (int i = 0; i < MAX_ENDED; i++)
        if (ended[i] == stream) return send_error(stream, ESTALE, "this stream has ended"), NULL;
    if (!c) return send_error(stream, EAGAIN, "too many commands at a time"), NULL;
    memset(c, 0, offsetof(struct command, piece));
    c->stream = stream;
    c->in = c->out = c->err = -1;
    return c;
}

/* ---- what the host says ---- */

void take_request(int stream, const uint8_t *piece, size_t size, uint64_t offset, int is_last)
{
    struct command *c = find(stream);
    if (!c && !(c = claim(stream))) return;
    int is_due = !c->pid && offset == c->request_size && size <= sizeof c->request - c->request_size;
    if (is_due) {
        memcpy(c->request + c->request_size, piece, size);
        c->request_size += size;
    }
    send_ack(EXEC, stream, c->request_size, c->pid || (is_due && is_last));
    if (is_due && is_last) run(c);
}

/* Push the piece of stdin into the pipe; a command that reads no more of it is as good as one that read all. */
static void feed(struct command *c)
{
    while (c->in >= 0 && c->piece_done < c->piece_size) {
        ssize_t n = write(c->in, c->piece + c->piece_done, c->piece_size - c->piece_done);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) close_end(&c->in);
        else c->piece_done += (size_t)n;
    }
    c->has_piece = 0;
    c->stdin_taken += c->piece_size;
    c->stdin_ended = c->is_last_piece;
    if (c->stdin_ended) close_end(&c->in);
    send_ack(STDIN, c->stream, c->stdin_taken, c->stdin_ended);
}

void take_stdin(int stream, const uint8_t *piece, size_t size, uint64_t offset, int is_last)
{
    struct command *c = find(stream);
    if (!c || !c->pid || c->has_piece) return; /* it is acknowledged when it is through */
    if (c->stdin_ended || offset != c->stdin_taken || size > MAX_PIECE) {
        send_ack(STDIN, stream, c->stdin_taken, c->stdin_ended);
        return;
    }
    memcpy(c->piece, piece, size);
    c->piece_size = size;
    c->piece_done = 0;
    c->has_piece = 1;
    c->is_last_piece = is_last;
    feed(c);
}

void kill_command(int stream)
{
    struct command *c = find(stream);
    if (c && c->pid && !c->has_ended) kill(-c->pid, SIGKILL);
}

/* End all commands and forget all streams: a new host counts from 1 again. */
void drop_commands(void)
{
    for (struct command *c = commands; c < commands + MAX_STREAMS; c++) {
        if (c->stream < 0) continue;
        kill_command(c->stream);
        release(c);
    }
    memset(ended, 0, sizeof ended);
    drop_bulk();
}

/* ---- what happens to them ---- */

/* Kill what is past its deadline; returns the next deadline. */
int64_t kill_late(int64_t time)
{
    int64_t next = INT64_MAX;
    for (struct command *c = commands; c < commands + MAX_STREAMS; c++) {
        if (c->stream < 0 || !c->pid || !c->deadline || c->has_ended) continue;
        if (c->deadline <= time) {
            kill(-c->pid, SIGKILL);
            c->was_late = 1;
            c->deadline = 0;
        } else if (c->deadline < next) {
            next = c->deadline;
        }
    }
    return next;
}

/* Take the ends of our children; there are others than commands, which nobody asks for. */
void reap_commands(void)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < MAX_STREAMS; i++)
            if (commands[i].stream >= 0 && commands[i].pid == pid) {
                commands[i].status = status;
                commands[i].has_ended = 1;
            }
}

/* Pass on a piece of what a command printed; 0 when there is nothing more for now. */
static int drain(struct command *c, int *end, int kind)
{
    static uint8_t data[MAX_PAYLOAD];
    if (*end < 0 || c->is_held) return 0;
    if ((c->is_held = send_bulk(c->stream, kind, *end))) return 0;
    ssize_t n = read(*end, data, sizeof data);
    if (n > 0) send_frame(kind, c->stream, data, (size_t)n);
    if (n == 0) close_end(end);
    return n > 0;
}

/* Pass on all that an ended command left in its pipes, then its end. What it left running keeps no one waiting. */
static void finish(struct command *c)
{
    do
        if (!has_room()) return;
    while (drain(c, &c->out, STDOUT) || drain(c, &c->err, STDERR));
    if (!c->is_held) tell_end(c);
}

void commands_to_poll(struct pollfd *fds)
{
    for (struct command *c = commands; c < commands + MAX_STREAMS; c++, fds += 3) {
        int is_live = c->stream >= 0 && c->pid, is_open = is_live && !c->is_held && has_room();
        fds[0] = (struct pollfd){is_live && c->has_piece ? c->in : -1, POLLOUT, 0};
        fds[1] = (struct pollfd){is_open ? c->out : -1, POLLIN, 0};
        fds[2] = (struct pollfd){is_open ? c->err : -1, POLLIN, 0};
    }
}

void serve_commands(const struct pollfd *fds)
{
    int through = resend_bulk();
    if (through >= 0 && find(through)) find(through)->is_held = 0;
    for (struct command *c = commands; c < commands + MAX_STREAMS; c++, fds += 3) {
        if (c->stream < 0 || !c->pid) continue;
        if (c->has_piece) feed(c);
        if (fds[1].revents && has_room()) drain(c, &c->out, STDOUT);
        if (fds[2].revents && has_room()) drain(c, &c->err, STDERR);
        if (c->has_ended) finish(c);
    }
}
