/* runit's stages, and how the machine is told to end: see runit(8). */

#include "boot.h"
#include <dirent.h>
#include <signal.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define BOOTED "/run/imagekit/booted"

static int is_step(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static int run_step(const char *kind, const char *name)
{
    char path[LONGEST];
    int status = -1;
    snprintf(path, sizeof path, "/etc/imagekit/%s/%s", kind, name);
    pid_t pid = fork();
    if (!pid) {
        execl(path, path, NULL);
        complain("cannot run %s: %s", path, strerror(errno));
        _exit(127);
    }
    waitpid(pid, &status, 0);
    return status;
}

/* Run the steps of a kind in the order of their names; the first failure ends it when `is_strict`. */
static int run_steps(const char *kind, int is_strict)
{
    char folder[LONGEST];
    struct dirent **entries;
    int failures = 0;
    snprintf(folder, sizeof folder, "/etc/imagekit/%s", kind);
    int n = scandir(folder, &entries, is_step, alphasort);
    for (int i = 0; i < n && !(failures && is_strict); i++) failures += !!run_step(kind, entries[i]->d_name);
    return failures;
}

/* onboot. A failure stops the boot: 100 tells runit to go on with stage 3. */
int stage1(char **words)
{
    (void)words;
    if (run_steps("onboot", 1)) return 100;
    write_file(BOOTED, O_CREAT, "");
    return 0;
}

/* Supervise the services, and report who is ready. */
int stage2(char **words)
{
    (void)words;
    if (!fork()) return report_ready();
    execl("/usr/bin/runsvdir", "runsvdir", "-P", SERVICES, NULL);
    complain("cannot run runsvdir: %s", strerror(errno));
    return 1;
}

/* Stop the services, run onshutdown, and return: runit ends the machine. After a boot that failed no step is run. */
int stage3(char **words)
{
    (void)words;
    event("shutdown");
    stop_services();
    if (!access(BOOTED, F_OK)) run_steps("onshutdown", 0);
    return 0;
}

/* Executable means yes to runit. */
static void mark(const char *path, int yes)
{
    write_file(path, O_CREAT, "");
    chmod(path, yes ? 0100 : 0);
}

static int end_machine(char **words, int is_reboot)
{
    if (*words && !strcmp(*words, "-f")) {
        sync();
        reboot(is_reboot ? RB_AUTOBOOT : RB_POWER_OFF);
    }
    mark("/run/runit.reboot", is_reboot);
    mark("/run/runit.stopit", 1);
    return kill(1, SIGCONT) ? 1 : 0;
}

int reboot_soon(char **words) { return end_machine(words, 1); }

int power_off_soon(char **words) { return end_machine(words, 0); }
