/* The partition that keeps what is written to a root on a disk: mounted, and enlarged with its disk. */

#include "boot.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/wait.h>

#define RESIZE _IOW('f', 16, uint64_t) /* EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h, in blocks */

enum { EXT4 = 0xef53, PATIENCE = 5000 }; /* statfs(2); milliseconds */

void enlarge_partition(const struct place *place)
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

struct files { /* of an ext4 */
    uint64_t blocks, block, most; /* how many, the bytes of one, and how many there may be at most */
    int has_journal_to_replay;
};

static uint64_t rounded_up(uint64_t number, uint64_t by) { return (number + by - 1) / by; }

static uint32_t field(const uint8_t *super, int offset, int bytes)
{
    uint32_t value = 0;
    memcpy(&value, super + offset, (size_t)bytes); /* all our machines are little-endian, as ext4 is */
    return value;
}

/* What an ext4 tells ("The Super Block" of the kernel's Documentation/filesystems/ext4), which may be any bytes. It is
   not grown beyond the blocks reserved for descriptors of groups: the kernel can (meta_bg), but takes minutes. */
static struct files files_of(int device)
{
    uint8_t super[1024] = {0};
    (void)!pread(device, super, sizeof super, 1024);
    uint32_t shift = field(super, 0x18, 4), in_group = field(super, 0x20, 4), features = field(super, 0x60, 4);
    int is_64bit = !!(features & 0x80), size = is_64bit ? (int)field(super, 0xfe, 2) : 32;
    struct files files = {field(super, 0x04, 4), shift <= 6 ? 1024ULL << shift : 1024, 0, !!(features & 0x4)};
    if (is_64bit) files.blocks |= (uint64_t)field(super, 0x150, 4) << 32;
    if (size < 32 || size > 1024 || !in_group) return files;
    uint64_t in_block = files.block / (unsigned)size; /* descriptors */
    uint64_t blocks = rounded_up(rounded_up(files.blocks, in_group), in_block) + field(super, 0xce, 2);
    files.most = blocks * in_block * in_group;
    return files;
}

/* How many blocks its ext4 is to have for a device to be full; 0 when it is. */
static uint64_t blocks_to_have(int device, struct files *files)
{
    off_t room = lseek(device, 0, SEEK_END);
    *files = files_of(device);
    uint64_t wanted = room > 0 ? (uint64_t)room / files->block : 0;
    return wanted > files->blocks ? wanted : 0;
}

/* Enlarge a mounted ext4 to its partition: the kernel does it in steps that its journal keeps whole. */
static void enlarge_files(const char *path, const char *where)
{
    int device = open(path, O_RDONLY | O_CLOEXEC), folder = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct files before;
    uint64_t wanted = blocks_to_have(device, &before);
    if (wanted > before.most) {
        complain("%s: of %llu bytes its ext4 can take %llu", path, (unsigned long long)(wanted * before.block),
                 (unsigned long long)(before.most * before.block));
        wanted = before.most;
    }
    if (wanted > before.blocks && ioctl(folder, RESIZE, &wanted))
        complain("cannot enlarge the files of %s: %s", path, strerror(errno));
    struct files after = files_of(device);
    if (after.blocks > before.blocks) event("grown %llu", (unsigned long long)(after.blocks * after.block));
    close(folder);
    close(device);
}

/* Mount an ext4, which is never repaired or made anew: that would hide a loss. Where the power was cut while it grew,
   the mount that replays the journal keeps the number of groups from before, and growing on is a BUG of the kernel
   (fs/ext4/resize.c, seen with 6.1): so it is mounted once more. */
int mount_files(const char *path, const char *folder, unsigned long flags)
{
    int device = open(path, O_RDONLY | O_CLOEXEC), times = files_of(device).has_journal_to_replay ? 2 : 1, failed;
    close(device);
    do failed = mount(path, folder, "ext4", flags, "errors=remount-ro");
    while (!failed && --times && !(failed = umount(folder)));
    return failed;
}

/* Mount the partition; what is wrong, or NULL. */
const char *mount_changes(const char *wanted)
{
    struct place place;
    char path[LONGEST];
    if (wait_for_device(wanted, &place)) return "there is no such partition";
    snprintf(path, sizeof path, "/dev/%s", place.name);
    return mount_files(path, CHANGES, 0) ? strerror(errno) : NULL;
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

/* Wait for a process that grows something, but not long: terabytes take minutes, which nobody has to wait for. */
static void wait_a_while(pid_t pid, int done[2])
{
    close(done[1]);
    if (poll(&(struct pollfd){done[0], POLLIN, 0}, 1, PATIENCE) > 0) waitpid(pid, NULL, 0);
    close(done[0]);
}

/* Enlarge partition and files if the disk has room, by a process of its own: services that come up at once may well
   need more than the few megabytes that were shipped. */
void grow_changes(void)
{
    struct statfs about;
    char wanted[LONGEST / 4];
    int done[2];
    if (!argument("imagekit.changes", wanted, sizeof wanted) || statfs(CHANGES, &about) || about.f_type != EXT4) return;
    if (pipe2(done, O_CLOEXEC)) return;
    pid_t pid = fork();
    if (!pid) _exit(grow(wanted));
    wait_a_while(pid, done);
}

/* Enlarge the files of a mounted device of which it is known that it is large enough, likewise. */
void grow_files(const char *path, const char *folder)
{
    struct files files;
    int done[2], device = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t wanted = blocks_to_have(device, &files);
    close(device);
    if (!wanted || (wanted > files.most && files.blocks >= files.most) || pipe2(done, O_CLOEXEC)) return;
    pid_t pid = fork();
    if (!pid) {
        enlarge_files(path, folder);
        _exit(0);
    }
    wait_a_while(pid, done);
}
