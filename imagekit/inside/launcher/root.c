/* A mount namespace of our own, another root in it, and leaving the host's. */

#include "launcher.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <time.h>

static int is_mapped, names = -1; /* in a user namespace; the host's resolv.conf */
static char spot[16];             /* where our tmpfs covers the host's folder */

static void tell(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, text, strlen(text)) < 0) fail("cannot write to %s: %s", path, strerror(errno));
    close(file);
}

static void put(const char *source, const char *to, const char *kind, unsigned long flags, const char *options)
{
    if (mount(source, to, kind, flags, options))
        fail("cannot mount %s on %s: %s", kind ? kind : source ? source : "its flags", to, strerror(errno));
}

/* Root has a mount namespace; who is not root, or may not, has one in a user namespace with one user: the image's. We
   stand in what is kept: only our root and where we stand come along into the namespace, a descriptor stays outside. */
void enter_namespace(const struct image *image, int kept)
{
    char map[64];
    unsigned uid = geteuid(), gid = getegid();
    if (!image->is_read_only) names = open("/etc/resolv.conf", O_RDONLY | O_CLOEXEC);
    if (kept >= 0 && (fchdir(kept) || close(kept))) fail("the cache cannot be read: %s", strerror(errno));
    if (unshare(CLONE_NEWNS)) {
        int failed = unshare(CLONE_NEWUSER | CLONE_NEWNS);
        for (int i = 0; failed && errno == EINVAL && i < 1000; i++) { /* a thread that was joined may not be gone yet */
            nanosleep(&(struct timespec){0, 1000000}, NULL);
            failed = unshare(CLONE_NEWUSER | CLONE_NEWNS);
        }
        if (failed)
            fail("cannot make a user namespace: %s. This host does not let its users (sysctl user.max_user_namespaces, "
                 "kernel.unprivileged_userns_clone, AppArmor): run as root, or use --bundle-extract", strerror(errno));
        is_mapped = 1;
        tell("/proc/self/setgroups", "deny"); /* user_namespaces(7): before gid_map */
        snprintf(map, sizeof map, "%u %u 1", image->uid, uid);
        tell("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "%u %u 1", image->gid, gid);
        tell("/proc/self/gid_map", map);
    }
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
        fail("/ is no mount point here (in a chroot, bind it on itself): %s", strerror(errno));
}

/* A tmpfs over a folder that every host has; it is covered in this namespace only. */
static void mount_spot(void)
{
    static const char *SPOTS[] = {"/tmp", "/run", "/mnt", "/dev", "/etc"};
    for (size_t i = 0; i < sizeof SPOTS / sizeof *SPOTS; i++) {
        strcpy(spot, SPOTS[i]);
        if (!mount("tmpfs", spot, "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")) return;
    }
    fail("cannot mount a tmpfs: %s", strerror(errno));
}

static void at_spot(const char *folder, mode_t mode)
{
    char path[32];
    snprintf(path, sizeof path, "%s/%s", spot, folder);
    if (mkdir(path, mode)) fail("cannot make a folder: %s", strerror(errno));
}

/* An overlay of where we stand, or of the EROFS at the spot: what is written goes to the tmpfs, and ends with it. Where
   it is read-only it has two lower folders, one of them empty: nobody can make that writable. */
static int overlay(const struct image *image)
{
    char options[160], root[32], lower[32] = ".", upper[80];
    if (image->is_erofs) snprintf(lower, sizeof lower, "%s/lower", spot);
    snprintf(upper, sizeof upper, image->is_read_only ? ":%s/upper" : ",upperdir=%s/upper,workdir=%s/work", spot, spot);
    at_spot("upper", 0755); /* the mode of the new / */
    at_spot("work", 0700);
    at_spot("root", 0700);
    snprintf(root, sizeof root, "%s/root", spot);
    for (const char *more = is_mapped ? ",userxattr" : "";; more = ",userxattr") { /* in user namespaces: Linux 5.11 */
        snprintf(options, sizeof options, "lowerdir=%s%s%s", lower, upper, more);
        if (!mount("overlay", root, "overlay", MS_NOSUID | MS_NODEV, options)) return !chdir(root);
        if (*more) return 0;
    }
}

/* Where the host's folders and memory are mounted. A symlink there would mount over the host's own folders. */
void make_mount_points(int root)
{
    static const char *POINTS[] = {"proc", "sys", "dev", "run", "tmp"};
    for (size_t i = 0; i < sizeof POINTS / sizeof *POINTS; i++) {
        struct stat about = {0};
        if (fstatat(root, POINTS[i], &about, AT_SYMLINK_NOFOLLOW))
            mkdirat(root, POINTS[i], i < 4 ? 0755 : 01777), fstatat(root, POINTS[i], &about, AT_SYMLINK_NOFOLLOW);
        if (!S_ISDIR(about.st_mode)) fail("/%s of this image is no folder: refused as a mount point", POINTS[i]);
    }
}

/* A mount of its own, read-only where the bundle was made so, where we stand. */
static const char *bound(const struct image *image, const char *path, const char *how)
{
    put(path, path, NULL, MS_BIND, NULL);
    if (chdir(path)) fail("cannot enter the root: %s", strerror(errno));
    if (image->is_read_only) put(NULL, ".", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL);
    return how;
}

/* A file without a name: it ends with its mount. The kernel mounts none that lies in memory. */
static int unnamed_copy(const struct image *image)
{
    int file = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) file = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) fail("there is neither a cache nor room in /var/tmp for a copy: %s", strerror(errno));
    copy_erofs(image, file);
    return file;
}

static const char *mount_erofs(const struct image *image, int is_kept)
{
    char lower[32], source[32] = "image";
    int copy = -1;
    if (is_mapped) fail("only root can mount the EROFS that is in here: bundle the image's tar.gz for other users");
    if (!is_kept) snprintf(source, sizeof source, "/proc/self/fd/%d", copy = unnamed_copy(image));
    mount_spot();
    at_spot("lower", 0700);
    snprintf(lower, sizeof lower, "%s/lower", spot);
    int failed = mount(source, lower, "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL);
    if (failed && is_kept && errno == ENOTBLK) { /* the cache lies in memory */
        snprintf(source, sizeof source, "/proc/self/fd/%d", copy = unnamed_copy(image));
        failed = mount(source, lower, "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL);
        is_kept = 0;
    }
    if (failed)
        fail("cannot mount the EROFS that is in here, as Linux 6.12 can from a disk: %s", strerror(errno));
    if (copy >= 0) close(copy);
    if (image->is_read_only) {
        if (chdir(lower)) fail("cannot enter the root: %s", strerror(errno));
    } else if (!overlay(image)) fail("cannot mount an overlay: %s", strerror(errno));
    make_mount_points(AT_FDCWD);
    return is_kept ? "mounted, from the cache" : "mounted, from a copy without a name";
}

/* Stand in the root of the image: in what is kept, below an overlay unless it is read-only; else in what is unpacked
   into a tmpfs. Says which. */
const char *mount_root(const struct image *image, int is_kept)
{
    char tree[32];
    int is_bound = image->is_read_only && !image->is_erofs && !is_mapped; /* who is mapped could undo the flag */
    if (is_kept && is_bound) return bound(image, "root", "from the cache, read-only");
    if (image->is_erofs) return mount_erofs(image, is_kept);
    mount_spot();
    if (is_kept && !chdir("root") && overlay(image)) return make_mount_points(AT_FDCWD), "from the cache";
    at_spot("tree", 0755);
    snprintf(tree, sizeof tree, "%s/tree", spot);
    int folder = open(tree, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    open_pieces(image, 0);
    untar(folder, !is_mapped);
    close_pieces(NULL);
    make_mount_points(folder);
    close(folder);
    return bound(image, tree, "unpacked into memory");
}

/* The host's resolv.conf, unless the image has one of its own: the network is the host's as well. */
static void copy_names(void)
{
    static const char own[] = "resolv.conf";
    char text[65536];
    int etc = open("/etc", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC); /* a link can lead to the host's, by /proc */
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file = openat(etc, own, flags, 0644);
    if (etc >= 0 && file < 0 && errno == EEXIST && faccessat(etc, own, F_OK, 0) && !unlinkat(etc, own, 0))
        file = openat(etc, own, flags, 0644); /* it was a link to what a boot would make */
    ssize_t n = file < 0 || names < 0 ? 0 : read(names, text, sizeof text);
    if (n > 0) (void)!write(file, text, (size_t)n);
    if (file >= 0) close(file);
    if (etc >= 0) close(etc);
    if (names >= 0) close(names);
}

/* Make the folder where we stand the root; nothing of the host's stays reachable but what is mounted here. */
void leave_host(int is_read_only)
{
    put("/proc", "proc", NULL, MS_BIND | MS_REC, NULL);
    put("/sys", "sys", NULL, MS_BIND | MS_REC, NULL);
    put("/dev", "dev", NULL, MS_BIND | MS_REC, NULL);
    if (is_read_only) {
        put("tmpfs", "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
        put("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    }
    if (!syscall(SYS_pivot_root, ".", ".")) {
        if (umount2(".", MNT_DETACH)) fail("cannot leave the host's root: %s", strerror(errno));
    } else { /* EINVAL where / is the kernel's own first root (an initramfs): pivot_root(2), NOTES */
        put(".", "/", NULL, MS_MOVE, NULL);
        if (chroot(".")) fail("cannot enter the root: %s", strerror(errno));
    }
    if (chdir("/")) fail("cannot enter the root: %s", strerror(errno));
    if (!is_read_only) copy_names();
}
