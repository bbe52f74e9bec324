/* The launcher: the executable in front of a signed image, which makes of both a program that needs nothing installed.
 *
 *     app ARGUMENT...                          become the image's program, in the image's root
 *     app --bundle-exec PROGRAM ARGUMENT...    become another program of the image
 *     app --bundle-info | --bundle-verify | --bundle-extract DIR
 *
 * It verifies the image (image.c, pieces.c), takes its tree from a cache or fills that (kept.c, untar.c), else unpacks
 * it into memory, enters it in a mount namespace (root.c), and calls execve: the program has its process, its signals,
 * its descriptors, its limits and its exit code. What fails before is told in one line, with the exit code 125; 126
 * and 127 mean that the program cannot be executed, or is not there.
 */

#include "launcher.h"
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/auxv.h>

#define PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

extern char **environ;
static struct image image;
static const char *called = "imagekit";
static void (*on_large_file)(int);

/* One line on stderr; what comes from an image may not command the terminal. */
static void say(const char *form, va_list rest)
{
    char line[1024];
    int n = snprintf(line, sizeof line, "%.200s: ", called);
    vsnprintf(line + n, sizeof line - (size_t)n, form, rest);
    for (char *p = line; *p; p++)
        if ((uint8_t)*p < ' ' || *p == 0x7f) *p = '?';
    dprintf(2, "%s\n", line);
}

_Noreturn void fail(const char *form, ...)
{
    va_list rest;
    va_start(rest, form);
    say(form, rest);
    drop_draft();
    _exit(OURS);
}

static void __attribute__((format(printf, 1, 2))) explain(const char *form, ...)
{
    va_list rest;
    va_start(rest, form);
    say(form, rest);
    va_end(rest);
}

/* This file. Where there is no /proc, it has the name that the kernel was given; of a script that is the script's. */
static int open_self(void)
{
    const char *path = (const char *)getauxval(AT_EXECFN);
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (geteuid() != getuid() || getegid() != getgid()) fail("a bundle is not made for setuid and setgid");
    if (file < 0 && path) file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) fail("cannot open this file: %s", strerror(errno));
    return file;
}

/* ---- becoming the program ---- */

static int is_set(char **list, const char *variable)
{
    size_t length = strcspn(variable, "=") + 1;
    for (; *list; list++)
        if (!strncmp(*list, variable, length)) return 1;
    return 0;
}

/* The caller's variables, and the image's where he has none; but PATH and HOME are the image's: they name folders. */
static void set_environment(char **list)
{
    size_t n = 0;
    char *usual[] = {PATH, image.uid ? "HOME=/" : "HOME=/root", NULL};
    for (char **from = environ; *from; from++)
        if (!is_set(usual, *from)) list[n++] = *from;
    for (char **from = image.environment; *from; from++)
        if (!is_set(list, *from)) list[n++] = *from;
    for (char **from = usual; *from; from++)
        if (!is_set(list, *from)) list[n++] = *from;
    environ = list;
}

/* Nomad's drivers leave us its own score of -1000: the kernel would kill anything else first. */
static void reset_oom_score(void)
{
    char score[8] = "";
    int file = getenv("NOMAD_ALLOC_ID") ? open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    if (read(file, score, sizeof score) > 0 && !strncmp(score, "-1000", 5)) (void)!pwrite(file, "0", 1, 0);
    close(file);
}

static void become(char **argv)
{
    if ((geteuid() != image.uid || getegid() != image.gid) && /* never in a user namespace, which has only that user */
        (setgroups(0, NULL) || setgid(image.gid) || setuid(image.uid)))
        fail("cannot become user %u:%u: %s", image.uid, image.gid, strerror(errno));
    if (chdir(image.workdir)) fail("cannot enter %s of the image: %s", image.workdir, strerror(errno));
    signal(SIGXFSZ, on_large_file);
    execvp(*argv, argv);
    int code = errno == ENOENT || errno == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
    explain("cannot execute %s: %s", *argv, strerror(errno));
    _exit(code);
}

static size_t length(char **list)
{
    size_t n = 0;
    while (list[n]) n++;
    return n;
}

static void run(int count, char **words)
{
    size_t most = length(environ) + length(image.environment) + length(image.arguments) + (size_t)count + 8, n = 0;
    char *few[256] = {0}, **list = most < 256 ? few : calloc(most, sizeof *list), **argv = list;
    if (!list) fail("not enough memory");
    if (count > 1 && !strcmp(words[1], "--bundle-exec")) words++, count--;
    else
        for (char **from = image.arguments; *from; from++) argv[n++] = *from;
    for (int i = 1; i < count; i++) argv[n++] = words[i];
    if (!n) fail("the image names no program: say which (--bundle-exec PROGRAM)");
    mode_t mask = umask(0);
    int kept = keep(&image);
    reset_oom_score();
    enter_namespace(&image, kept);
    const char *how = mount_root(&image, kept >= 0), *why = kept_reason;
    if (getenv("IMAGEKIT_EXPLAIN")) explain("%s%s%s", how, *why ? ": " : "", why);
    leave_host(image.is_read_only);
    umask(mask);
    close(image.file); /* by now none of our descriptors is open but the lock: a folder's, or its, would lead out */
    set_environment(argv + n + 1);
    become(argv);
}

/* ---- the other words ---- */

static int info(char **words)
{
    (void)words;
    verify_image();
    show_image(&image);
    return 0;
}

static int verify(char **words)
{
    char digest[65];
    size_t size;
    (void)words;
    verify_image();
    open_pieces(&image, 1);
    while (next_piece(&size)) continue;
    close_pieces(digest);
    if (strcmp(digest, image.content)) damaged("its content has another digest than its signer says");
    printf("verified: %llu bytes, sha256 %s\n", (unsigned long long)image.size, digest);
    return 0;
}

static int extract(char **words)
{
    verify_image();
    if (mkdir(words[2], 0755)) fail("cannot make %s: %s", words[2], strerror(errno));
    int folder = open(words[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) fail("cannot open %s: %s", words[2], strerror(errno));
    begin_draft(AT_FDCWD, words[2]);
    if (image.is_erofs) {
        int file = openat(folder, "image.erofs", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (file < 0) fail("cannot write to %s: %s", words[2], strerror(errno));
        return copy_erofs(&image, file), 0;
    }
    open_pieces(&image, 0);
    untar(folder, !geteuid());
    close_pieces(NULL);
    return 0;
}

static const struct word {
    const char *name;
    int words; /* all of them, the program's included */
    int (*run)(char **words);
} WORDS[] = {
    {"--bundle-info", 2, info},
    {"--bundle-verify", 2, verify},
    {"--bundle-extract", 3, extract},
};

int main(int count, char **words)
{
    if (*words && **words) called = strrchr(*words, '/') ? strrchr(*words, '/') + 1 : *words;
    on_large_file = signal(SIGXFSZ, SIG_IGN); /* a limit is told as an error */
    open_image(&image, open_self());
    for (size_t i = 0; count > 1 && i < sizeof WORDS / sizeof *WORDS; i++)
        if (!strcmp(words[1], WORDS[i].name)) {
            if (count != WORDS[i].words) fail("usage: --bundle-info | --bundle-verify | --bundle-extract DIR");
            return WORDS[i].run(words);
        }
    if (count > 1 && !strncmp(words[1], "--bundle-", 9) && strcmp(words[1], "--bundle-exec"))
        fail("%s is unknown: --bundle-info, --bundle-verify, --bundle-extract DIR, --bundle-exec PROGRAM", words[1]);
    run(count, words);
}
