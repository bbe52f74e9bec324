/* What /init does first, in an initrd or not: mounts, and kernel modules. */

#include "boot.h"
#include <sys/mount.h>
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
static void mount_all(void)
{
    for (size_t i = 0; i < sizeof MOUNTS / sizeof *MOUNTS; i++) {
        mkdir(MOUNTS[i].target, 0755);
        if (!mount(MOUNTS[i].type, MOUNTS[i].target, MOUNTS[i].type, MOUNTS[i].flags, MOUNTS[i].options)) continue;
        if (errno != EBUSY && errno != ENODEV) complain("cannot mount %s: %s", MOUNTS[i].target, strerror(errno));
    }
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++) (void)!symlink(LINKS[i].target, LINKS[i].path);
    chmod("/", 0755); /* an initramfs begins as a tmpfs with 1777 */
    mkdir("/run/imagekit", 0755);
    mkdir("/run/imagekit/supervise", 0755);
    mkdir("/run/lock", 0755);
    chmod("/run/lock", 01777);
}

/* A module that does not load is told and passed over: what needs it says more about it than we can. A driver that
   finds nothing to drive (ENODEV) is one of several that were brought for as many machines, and so is one that lacks a
   symbol (ENOENT) of such a one; the kernel names the symbol. */
static void load_modules(void)
{
    char line[LONGEST];
    FILE *file = fopen("/etc/imagekit/modules", "re");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        int module = open(line, O_RDONLY | O_CLOEXEC);
        int error = module < 0 ? errno : syscall(SYS_finit_module, module, "", 0) ? errno : 0;
        if (error && error != EEXIST && error != ENODEV && (error != ENOENT || module < 0))
            complain("cannot load %s: %s", line, strerror(error));
        close(module);
    }
    if (file) fclose(file);
}

/* A measured boot asks for the counter of the processor, which runs from the reset on, not from the kernel's start:
   the difference to our clock is the firmware's time. x86 does not tell its rate: 0. */
static void note_counter(void)
{
    char line[4096] = "";
    unsigned long long value, rate = 0;
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = read(file, line, sizeof line - 1);
    close(file);
    if (size <= 0 || !strstr(line, "imagekit.counter")) return;
#ifdef __aarch64__
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
    __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(rate));
#else
    value = __builtin_ia32_rdtsc();
#endif
    event("counter %llu %llu", value, rate);
}

void prepare(void)
{
    mount_all();
    event("early");
    note_counter();
    write_file("/proc/sys/kernel/printk_devkmsg", 0, "on\n"); /* there may be more than ten events in five seconds */
    load_modules();
    event("modules");
}
