/* The first program of an initrd whose root lies on a disk: finds it, lays changes over it, and goes there.

   The root is mounted read-only at /run/imagekit/root, and below an overlay whose changes are at /run/imagekit/changes:
   a tmpfs, or the partition of imagekit.changes=. A partition that cannot be used is left as it is, and the machine
   comes up with a tmpfs and the event "changes lost": one that can be reached can be mended, and says so. */

#include "boot.h"
#include <dirent.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>

#define ROOT "/run/imagekit/root"
#define NEW "/root" /* any empty folder of the initrd */
#define AGENT ".imagekit" /* of a test boot: it leaves by itself (agent.c) */

static int mount_root(const char *name, char *types)
{
    char path[LONGEST], *type;
    snprintf(path, sizeof path, "/dev/%s", name);
    mkdir(ROOT, 0755);
    for (char *rest = types; (type = strsep(&rest, ","));) {
        if (mount(path, ROOT, type, MS_RDONLY, NULL)) continue;
        event("root %s %s", name, type);
        return 0;
    }
    return -1;
}

static int lay_over(void)
{
    mkdir(CHANGES "/upper", 0755);
    mkdir(CHANGES "/work", 0755);
    return mount("root", NEW, "overlay", 0, "lowerdir=" ROOT ",upperdir=" CHANGES "/upper,workdir=" CHANGES "/work");
}

/* Lay the kept changes over the root, or when there is no way to them, empty ones that end with this boot. */
static int lay_changes_over(const char *kept)
{
    mkdir(CHANGES, 0755);
    if (*kept) {
        const char *wrong = mount_changes(kept);
        if (!wrong && !lay_over()) return 0;
        if (!wrong) wrong = strerror(errno);
        event("changes lost %s: %s", kept, wrong);
        complain("WHAT WAS WRITTEN EARLIER IS NOT THERE, AND NOTHING THAT IS WRITTEN NOW WILL BE KEPT");
        umount(CHANGES);
    }
    return mount("changes", CHANGES, "tmpfs", 0, "mode=0755") || lay_over();
}

/* Give the memory of the initrd's files back, as switch_root(8) does. */
static void free_files(int folder, dev_t device)
{
    struct stat about;
    DIR *all = fdopendir(folder);
    for (struct dirent *entry; all && (entry = readdir(all));) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || !strcmp(name, AGENT)) continue;
        if (fstatat(folder, name, &about, AT_SYMLINK_NOFOLLOW) || about.st_dev != device) continue;
        if (S_ISDIR(about.st_mode)) free_files(openat(folder, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), device);
        unlinkat(folder, name, S_ISDIR(about.st_mode) ? AT_REMOVEDIR : 0);
    }
    if (all) closedir(all);
}

/* Make the new root the only one. An initramfs cannot be pivoted away from: it is covered, and emptied. */
static int go(void)
{
    static const char *const MOVED[] = {"/proc", "/sys", "/dev", "/run", "/tmp"};
    struct stat about;
    char target[LONGEST];
    int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < sizeof MOVED / sizeof *MOVED; i++) {
        snprintf(target, sizeof target, NEW "%s", MOVED[i]);
        mkdir(target, 0755);
        if (mount(MOVED[i], target, NULL, MS_MOVE, NULL)) return -1;
    }
    if (chdir(NEW) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/")) return -1;
    if (!fstat(old, &about)) free_files(old, about.st_dev);
    return 0;
}

/* Tell why there is no way on, and do what panic= says of a kernel in that state: start again, or stay. It is not left
   to a panic, which would print a page over these words. */
int give_up(const char *what, const char *which)
{
    char seconds[16] = "";
    complain("%s %s (block devices: %s)", what, which, all_devices());
    int file = open("/proc/sys/kernel/panic", O_RDONLY | O_CLOEXEC);
    (void)!read(file, seconds, sizeof seconds - 1);
    if (!atoi(seconds)) return 1;
    if (atoi(seconds) > 0) sleep((unsigned)atoi(seconds));
    return reboot(RB_AUTOBOOT);
}

/* Mount the root that was found, and become its /init; comes back only when there is no way. */
int go_to(const struct root *root)
{
    static char *argv[] = {"init", NULL}, *env[] = {PATH, NULL};
    char kept[LONGEST / 4], types[LONGEST / 4], which[LONGEST];
    const char *wrong = NULL;
    if (root->is_verified || !argument("imagekit.changes", kept, sizeof kept)) *kept = 0; /* nothing verifies changes */
    if (!argument("rootfstype", types, sizeof types)) strcpy(types, "squashfs,erofs,ext4");
    snprintf(which, sizeof which, "%s as %s", root->place.name, types);
    if (mount_root(root->place.name, types)) return give_up("cannot mount the root", which);
    if (lay_changes_over(kept)) return give_up("cannot mount an overlay over", which);
    if (root->mount_more && (wrong = root->mount_more(&root->place, NEW))) return give_up("there is no way on:", wrong);
    if (go()) return give_up("cannot move to", which);
    execve("/init", argv, env);
    return give_up("cannot run /init of", which);
}

/* Become /init of the root on the disk; comes back only when there is no way. */
int enter_root(void)
{
    char wanted[LONGEST / 4];
    struct root root = {.mount_more = NULL};
    if (!argument("root", wanted, sizeof wanted)) return give_up("the kernel's command line has no", "root=");
    if (wait_for_device(wanted, &root.place)) return give_up("there is no root", wanted);
    return go_to(&root);
}
