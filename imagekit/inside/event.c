/* Events: lines of one append-only file, and of the console. */

#include "boot.h"
#include <poll.h>
#include <stdarg.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <time.h>

int64_t milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

void write_file(const char *path, int flags, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC | flags, 0644);
    (void)!write(file, text, strlen(text));
    close(file);
}

/* Note that something happened. The file's lock keeps the lines in the order of their times; the level on the console,
   error of facility user, is one that `quiet` still shows. */
void event(const char *form, ...)
{
    char words[LONGEST], line[LONGEST + 64];
    struct timespec t;
    va_list list;
    va_start(list, form);
    vsnprintf(words, sizeof words, form, list);
    va_end(list);
    for (char *p = words; *p; p++)
        if (*p < ' ') *p = ' '; /* one event is one line, whatever a name or an error holds */
    int file = open(EVENTS, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    flock(file, LOCK_EX);
    clock_gettime(CLOCK_MONOTONIC, &t);
    snprintf(line, sizeof line, "%lld.%09ld %s\n", (long long)t.tv_sec, t.tv_nsec, words);
    (void)!write(file, line, strlen(line));
    close(file);
    snprintf(line, sizeof line, "<11>imagekit: %s\n", words);
    write_file("/dev/kmsg", 0, line);
}

/* How many events begin with these words. */
int count(const char *form, ...)
{
    char words[LONGEST], line[LONGEST + 64];
    int found = 0;
    va_list list;
    va_start(list, form);
    vsnprintf(words, sizeof words, form, list);
    va_end(list);
    size_t length = strlen(words);
    FILE *file = fopen(EVENTS, "re");
    while (file && fgets(line, sizeof line, file)) {
        char *said = strchr(line, ' ');
        if (said && !strncmp(said + 1, words, length) && (said[1 + length] == ' ' || said[1 + length] == '\n')) found++;
    }
    if (file) fclose(file);
    return found;
}

/* Sleep until there are new events, or until a time in milliseconds (-1: for ever); 1 for new events.
   The first call returns at once, so that nothing is missed between reading the file and sleeping. */
int wait_for_growth(int64_t until)
{
    static int watch = -1;
    char noticed[1024];
    if (watch < 0) {
        watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
        inotify_add_watch(watch, EVENTS, IN_MODIFY);
        return 1;
    }
    struct pollfd file = {watch, POLLIN, 0};
    int64_t pause = until < 0 ? -1 : until - milliseconds();
    poll(&file, 1, until >= 0 && pause < 0 ? 0 : (int)pause);
    return read(watch, noticed, sizeof noticed) > 0;
}

/* Say what went wrong, on the console. */
void complain(const char *form, ...)
{
    char words[LONGEST], line[LONGEST + 64];
    va_list list;
    va_start(list, form);
    vsnprintf(words, sizeof words, form, list);
    va_end(list);
    snprintf(line, sizeof line, "<11>imagekit: %s\n", words);
    write_file("/dev/kmsg", 0, line);
}

/* event WORDS... */
int note(char **words)
{
    char text[LONGEST] = "";
    for (size_t n = 0; *words && n < sizeof text; words++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", n ? " " : "", *words);
    event("%s", text);
    return 0;
}
