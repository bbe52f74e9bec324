/* How the guest is, in lines that imagekit/health.py reads. No process is started: this is asked after every test. */

#include "agent.h"
#include <ctype.h>
#include <dirent.h>
#include <stdarg.h>
#include <stdlib.h>

#define SUPERVISED "/proc/1/root/run/imagekit/supervise"

enum { MOST_MOUNTS = 64 }; /* that are told */

static char told[32768], text[65536];
static size_t told_size;

static void tell(const char *form, ...)
{
    va_list list;
    size_t room = sizeof told - told_size;
    va_start(list, form);
    int n = vsnprintf(told + told_size, room, form, list);
    va_end(list);
    if (n > 0 && (size_t)n < room) told_size += (size_t)n; /* or nothing: then "end" is missing too */
}

/* A file as text, cut to fit; never waits, whatever the guest has put there. */
static char *contents(int folder, const char *path)
{
    size_t size = 0;
    int file = openat(folder, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    for (ssize_t n; file >= 0 && (n = read(file, text + size, sizeof text - 1 - size)) > 0;) size += (size_t)n;
    if (file >= 0) close(file);
    text[size] = 0;
    return text;
}

/* The number behind a word that begins a line. */
static long long number(const char *lines, const char *word)
{
    for (const char *p = lines; (p = strstr(p, word)); p++)
        if (p == lines || p[-1] == '\n') return atoll(p + strlen(word));
    return 0;
}

static void tell_kernel(void)
{
    int64_t time = now();
    tell("taint %lld\n", atoll(contents(AT_FDCWD, "/proc/sys/kernel/tainted")));
    tell("uptime %lld.%09lld\n", (long long)time / 1000000000, (long long)time % 1000000000);
    tell("boot_id %.36s\n", contents(AT_FDCWD, "/proc/sys/kernel/random/boot_id"));
    contents(AT_FDCWD, "/proc/meminfo");
    tell("memory %lld %lld\n", number(text, "MemTotal:"), number(text, "MemAvailable:"));
    tell("oom_kills %lld\n", number(contents(AT_FDCWD, "/proc/vmstat"), "oom_kill "));
}

/* Count the programs; threads of the kernel have no parent but 0 and 2 (kthreadd). */
static void tell_processes(void)
{
    int programs = 0, zombies = 0;
    DIR *all = opendir("/proc");
    for (struct dirent *entry; all && (entry = readdir(all));) {
        char path[64];
        if (!isdigit(entry->d_name[0])) continue;
        snprintf(path, sizeof path, "%.20s/stat", entry->d_name);
        char *stat = strrchr(contents(dirfd(all), path), ')'); /* ") STATE PARENT ..." (proc(5)) */
        int parent = stat && strlen(stat) > 4 ? atoi(stat + 4) : 2;
        if (parent == 2 || (!parent && atoi(entry->d_name) == 2)) continue;
        programs++;
        zombies += stat[2] == 'Z';
    }
    if (all) closedir(all);
    tell("processes %d %d\n", programs, zombies);
}

/* The file systems that PID 1 sees read-only: "SOURCE PATH TYPE OPTIONS ..." with octal escapes (proc(5)). */
static void tell_read_only(void)
{
    int n = 0;
    char *rest = contents(AT_FDCWD, "/proc/1/mounts");
    for (char *line; n < MOST_MOUNTS && (line = strsep(&rest, "\n"));) {
        char *path = strchr(line, ' '), *type = path ? strchr(path + 1, ' ') : NULL;
        char *options = type ? strchr(type + 1, ' ') : NULL;
        if (!options || strncmp(options, " ro", 3) || (options[3] != ',' && options[3] != ' ')) continue;
        *type = 0;
        if (type - path < 1024) tell("read_only%s\n", path);
        n++;
    }
}

/* What runsv notes of each service (runsv(8), supervise/status): bytes 12 to 15 are its pid, 17 what is wanted, 'u' or
   'd', 19 whether it is down, up or finishing. */
static void tell_services(void)
{
    DIR *all = opendir(SUPERVISED);
    for (struct dirent *entry; all && (entry = readdir(all));) {
        uint8_t status[20];
        char path[300];
        if (entry->d_name[0] == '.' || strpbrk(entry->d_name, " \n")) continue;
        snprintf(path, sizeof path, "%s/status", entry->d_name);
        int file = openat(dirfd(all), path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        ssize_t n = file < 0 ? -1 : read(file, status, sizeof status);
        if (file >= 0) close(file);
        if (n != sizeof status) continue;
        int is_up = status[19] == 1, is_wanted = status[17] == 'u';
        tell("service %s %u %d %d\n", entry->d_name, is_up ? get32(status + 12) : 0, is_up, is_wanted);
    }
    if (all) closedir(all);
}

size_t tell_health(const char **answer)
{
    told_size = 0;
    tell_kernel();
    tell_processes();
    tell_read_only();
    tell_services();
    tell("end\n");
    *answer = told;
    return told_size;
}
