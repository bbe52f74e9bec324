/* What early boot does without a shell: each fork and exec costs milliseconds under emulation, a system call none.

   boot mount                      mount what every program expects, make /run/imagekit, start the clock of events
   boot load LIST                  load kernel modules: absolute paths in load order, a line each
   boot event WORDS...             note an event
   boot step KIND NAME ...         run a command of onboot or onshutdown to its end      (run.c)
   boot start NAME ...             become a service, when those it comes after are ready (service.c)
   boot end NAME RESTART ...       note that a service ended                             (service.c)
   boot wait SERVICE...            sleep until services are ready                        (service.c)
   boot stop                       stop all services                                     (service.c)
   boot ready                      report who is ready, once each, and then the whole    (ready.c)
   poweroff, reboot, halt [-f]     end the machine, as names of this program; ctrlaltdel too, as runit calls it

   init and the stages of runit call it; early.py writes the services' scripts that do. Events go to the file
   /run/imagekit/events and to the console: imagekit/early.py lists them. */

#include "boot.h"
#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static const struct {
    const char *type, *target, *options;
    unsigned long flags;
} MOUNTS[] = {
    {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
    {"devpts", "/dev/pts", "mode=0620,gid=5,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
    {"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV},
    {"tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV},
    {"tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV},
    {"cgroup2", "/sys/fs/cgroup", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
};

static const struct {
    const char *target, *path;
} LINKS[] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
};

/* A kernel may lack some of these, and an initrd may have mounted some: only a failure of another kind is told. */
static int mount_all(void)
{
    char line[LONGEST];
    for (size_t i = 0; i < sizeof MOUNTS / sizeof *MOUNTS; i++) {
        mkdir(MOUNTS[i].target, 0755);
        if (!mount(MOUNTS[i].type, MOUNTS[i].target, MOUNTS[i].type, MOUNTS[i].flags, MOUNTS[i].options)) continue;
        if (errno == EBUSY || errno == ENODEV) continue;
        snprintf(line, sizeof line, "cannot mount %s: %s", MOUNTS[i].target, strerror(errno));
        complain(line);
    }
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++) (void)!symlink(LINKS[i].target, LINKS[i].path);
    mkdir("/run/imagekit", 0755);
    mkdir("/run/imagekit/supervise", 0755);
    mkdir("/run/lock", 01777);
    event("early");
    return 0;
}

/* A module that does not load is told and passed over: what needs it says more about it than we can. */
static int load(const char *list)
{
    char line[LONGEST], words[LONGEST];
    FILE *file = fopen(list, "re");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        int module = open(line, O_RDONLY | O_CLOEXEC);
        if (syscall(SYS_finit_module, module, "", 0) && errno != EEXIST) {
            snprintf(words, sizeof words, "cannot load %.500s: %s", line, strerror(errno));
            complain(words);
        }
        close(module);
    }
    event("modules");
    return 0;
}

static int note(char **words)
{
    char text[LONGEST] = "";
    for (size_t n = 0; *words && n < sizeof text; words++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", n ? " " : "", *words);
    event("%s", text);
    return 0;
}

/* The files through which runit is told: executable means yes; see runit(8). */
static void mark(const char *path, int yes)
{
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0));
    chmod(path, yes ? 0100 : 0);
}

static int end_machine(const char *name, const char *option)
{
    int is_reboot = !strcmp(name, "reboot") || !strcmp(name, "ctrlaltdel");
    if (option && !strcmp(option, "-f")) { /* at once: nothing is stopped */
        sync();
        reboot(is_reboot ? RB_AUTOBOOT : RB_POWER_OFF);
    }
    mark("/run/runit.reboot", is_reboot);
    mark("/run/runit.stopit", 1);
    if (!strcmp(name, "ctrlaltdel") || !kill(1, SIGCONT)) return 0;
    perror(name);
    return 1;
}

int main(int argc, char **argv)
{
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    const char *verb = argc > 1 ? argv[1] : "";
    char **words = argv + 2;
    if (strcmp(name, "boot")) return end_machine(name, argv[1]);
    if (!strcmp(verb, "mount")) return mount_all();
    if (!strcmp(verb, "ready")) return report_ready();
    if (!strcmp(verb, "stop")) return stop_services();
    if (!strcmp(verb, "event")) return note(words);
    if (!strcmp(verb, "wait")) return wait_for_services(words);
    if (!strcmp(verb, "load") && argc == 3) return load(words[0]);
    if (!strcmp(verb, "step") && argc > 5) return step(words);
    if (!strcmp(verb, "start") && argc > 4) return start_service(words);
    if (!strcmp(verb, "end") && argc == 6) return end_service(words);
    fprintf(stderr, "boot: wrong words; imagekit/inside/boot.c has the right ones\n");
    return 2;
}
