/* Health: an image that was started for trial keeps its place when all its services are ready, and else is left.

   systemd-boot takes a try off the name of its UKI before each start, and starts another one when none is left. When
   all services are ready, and ten seconds later none has ended with an error, the UKI is named without tries. When a
   service fails, when a step of onboot does, or when it takes longer than imagekit.health=SECONDS of the kernel's
   arguments, the machine is started again. */

#include "slots.h"
#include <signal.h>
#include <sys/reboot.h>
#include <sys/stat.h>

#define REBOOT "/run/runit.reboot"
#define STOP "/run/runit.stopit"

enum { PATIENCE = 300, DISK_PATIENCE = 30, SETTLED = 10, GRACE = 60 }; /* seconds */

static struct disk disk;
static struct settings settings;

static void mark(const char *path, int yes) /* executable means yes to runit */
{
    write_file(path, O_CREAT, "");
    chmod(path, yes ? 0100 : 0);
}

/* The UKI that runs; find_disk() has found one. */
static int running(void)
{
    for (int i = 0; i < disk.ukis; i++)
        if (disk.is_running[i]) return i;
    return 0;
}

/* Find it, however slow the disk comes. */
static const char *find_running(int seconds)
{
    int64_t end = milliseconds() + seconds * 1000;
    const char *wrong;
    while ((wrong = find_disk(&disk, &settings, NULL)) && milliseconds() < end) usleep(100000);
    return wrong;
}

static int64_t patience(void)
{
    static char line[8192];
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    (void)!read(file, line, sizeof line - 1);
    close(file);
    const char *found = strstr(line, "imagekit.health=");
    int seconds = found && (found == line || found[-1] == ' ') ? atoi(found + 16) : 0;
    return 1000 * (int64_t)(seconds > 0 ? seconds : PATIENCE);
}

/* How often a service has ended with an error. */
static int crashes(void)
{
    char line[LONGEST + 64];
    int code, found = 0;
    FILE *file = fopen(EVENTS, "re");
    while (file && fgets(line, sizeof line, file)) found += sscanf(line, "%*s service exit %*s %d", &code) == 1 && code;
    if (file) fclose(file);
    return found;
}

/* Why the image is not healthy, "" when it is, NULL when it is left open: whoever ends the machine may do so. */
static const char *wait_for_health(void)
{
    int64_t end = milliseconds() + patience();
    int is_ready = 0, crashed = 0;
    for (;; wait_for_growth(end)) {
        if (count("service failed")) return "a service failed";
        if (count("onboot failed")) return "a step of onboot failed";
        if (count("shutdown")) return NULL;
        if (is_ready && crashes() > crashed) return "a service ended as soon as it was ready";
        if (milliseconds() >= end) return is_ready ? "" : "it took too long";
        if (is_ready || !count("ready")) continue;
        is_ready = 1;
        crashed = crashes();
        end = milliseconds() + SETTLED * 1000;
    }
}

/* Start again: as runit does it, and at once when that takes too long. */
static int leave(const char *why)
{
    event("slot failed %s_%s: %s", settings.name, settings.version, why);
    close_disk(&disk);
    mark(REBOOT, 1);
    mark(STOP, 1);
    kill(1, SIGCONT);
    sleep(GRACE);
    sync();
    return reboot(RB_AUTOBOOT);
}

/* Name the UKI that runs as one that has proven itself. */
static const char *keep_running(void)
{
    char name[LONGEST_NAME + 1];
    const struct uki *uki = &disk.uki[running()];
    snprintf(name, sizeof name, "%s_%s.efi", settings.name, settings.version);
    return uki->left < 0 ? NULL : rename_file(&disk.esp, &uki->file, name);
}

static int stay(void)
{
    const char *wrong = keep_running();
    if (wrong) return leave(wrong);
    mark(REBOOT, 0);
    event("slot kept %s_%s", settings.name, settings.version);
    return 0;
}

/* Beside the boot: nothing to do when the image has proven itself before. */
int watch(char **words)
{
    (void)words;
    if (!read_settings(&settings, "/etc/imagekit", "/proc/cmdline")) return 1;
    const char *wrong = find_running(DISK_PATIENCE);
    if (wrong) complain("updates are not possible: %s", wrong);
    if (wrong || disk.uki[running()].left < 0) return !!wrong;
    event("slot trying %s_%s: %d tries left", settings.name, settings.version, disk.uki[running()].left);
    mark(REBOOT, 1); /* what ends it before it is healthy starts it again, unless somebody powers it off */
    const char *why = wait_for_health();
    return !why ? 0 : *why ? leave(why) : stay();
}

/* Whether what runs has proven itself in an earlier boot, for the initrd: code 0. */
int is_blessed(char **words)
{
    (void)words;
    if (!read_settings(&settings, "/etc/imagekit", "/proc/cmdline")) return 2;
    const char *wrong = find_running(0); /* the root, or the sealed disk, was found on it before */
    if (wrong) complain("updates are not possible: %s", wrong);
    return wrong ? 2 : disk.uki[running()].left >= 0;
}

/* keep [DISK FOLDER ARGUMENTS [WRITES]]: what runs, or the image of another disk, as install() has it. */
int keep(char **words)
{
    int is_other = words[0] && words[1] && words[2];
    if (is_other && words[3]) writes_left = atol(words[3]);
    const char *folder = is_other ? words[1] : "/etc/imagekit", *arguments = is_other ? words[2] : "/proc/cmdline";
    if (!read_settings(&settings, folder, arguments)) return 2;
    const char *wrong = find_disk(&disk, &settings, *words);
    if (!wrong) wrong = keep_running();
    if (wrong) fprintf(stderr, "keep: %s\n", wrong);
    return !!wrong;
}
