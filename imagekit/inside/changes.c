/* The partition that keeps what is written to a root on a disk: mounted, and enlarged with its disk. */

#include "boot.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/wait.h>

#define RESIZE _IOW('f', 16, uint64_t) /* EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h, in blocks */

enum { EXT4 = 0xef53, PATIENCE = 5000 }; /* statfs(2); milliseconds */

static void enlarge_partition(const struct place *place)
{
    static struct table table;
    char path[LONGEST];
    int grown = 0;
    snprintf(path, sizeof path, "/dev/%s", place->disk);
    const char *wrong = read_partitions(&table, path, O_RDWR);
    table.writes = -1;
    if (!wrong) wrong = enlarge(&table, place->number, &grown);
    if (!wrong && grown && tell_kernel(&table, place->number)) wrong = strerror(errno);
    if (wrong) complain("cannot enlarge %s: %s", place->name, wrong);
    close(table.disk);
}

struct size {
    uint64_t blocks, block; /* how many, and the bytes of one */
};

/* How large an ext4 is ("The Super Block" of the kernel's Documentation/filesystems/ext4). */
static struct size size_of(int device)
{
    uint8_t super[1024] = {0};
    (void)!pread(device, super, sizeof super, 1024);
    uint32_t low, shift, high, features;
    memcpy(&low, super + 0x04, 4);
    memcpy(&shift, super + 0x18, 4);
    memcpy(&features, super + 0x60, 4);
    memcpy(&high, super + 0x150, 4);
    if (!(features & 0x80)) high = 0; /* INCOMPAT_64BIT */
    return (struct size){(uint64_t)high << 32 | low, shift <= 6 ? 1024ULL << shift : 1024};
}

/* Enlarge a mounted ext4 to its partition: the kernel does it in steps that its journal keeps whole. */
static void enlarge_files(const char *path, const char *target)
{
    int device = open(path, O_RDONLY | O_CLOEXEC), folder = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct size before = size_of(device);
    off_t room = lseek(device, 0, SEEK_END);
    uint64_t wanted = room > 0 ? (uint64_t)room / before.block : 0;
    if (wanted > before.blocks && ioctl(folder, RESIZE, &wanted))
        complain("cannot enlarge the files of %s: %s", path, strerror(errno));
    struct size after = size_of(device);
    if (after.blocks > before.blocks) event("grown %llu", (unsigned long long)(after.blocks * after.block));
    close(folder);
    close(device);
}

/* Mount the partition; what is wrong, or NULL. It is never repaired or made anew here: that would hide a loss. */
const char *mount_changes(const char *wanted)
{
    struct place place;
    char path[LONGEST];
    if (wait_for_device(wanted, &place)) return "there is no such partition";
    snprintf(path, sizeof path, "/dev/%s", place.name);
    return mount(path, CHANGES, "ext4", 0, "errors=remount-ro") ? strerror(errno) : NULL;
}

static int grow(const char *wanted)
{
    struct place place;
    char path[LONGEST];
    if (wait_for_device(wanted, &place)) return 1;
    if (place.number) enlarge_partition(&place);
    snprintf(path, sizeof path, "/dev/%s", place.name);
    enlarge_files(path, CHANGES);
    return 0;
}

/* Enlarge partition and files if the disk has room, by a process of its own: terabytes take minutes, which nobody has
   to wait for, but services that come up at once may well need more than the few megabytes that were shipped. */
void grow_changes(void)
{
    struct statfs about;
    char wanted[LONGEST / 4];
    int done[2];
    if (!argument("imagekit.changes", wanted, sizeof wanted) || statfs(CHANGES, &about) || about.f_type != EXT4) return;
    if (pipe2(done, O_CLOEXEC)) return;
    pid_t pid = fork();
    if (!pid) _exit(grow(wanted));
    close(done[1]);
    if (poll(&(struct pollfd){done[0], POLLIN, 0}, 1, PATIENCE) > 0) waitpid(pid, NULL, 0);
    close(done[0]);
}
