/* What was unpacked and verified once since the machine started, kept below a user's cache for the next start, beside
   what `imagekit run` keeps: CACHE/roots/DIGEST-b-BOOT/ with root/ (or image, of an EROFS), note and lock; made as a
   draft and renamed. Who uses an entry holds its lock (shared); who makes or removes one has it alone. */

#include "launcher.h"
#include <dirent.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <time.h>

enum {
    LASTING = 60,    /* seconds that a look at all files is believed */
    HIGH = 60,       /* a descriptor that no program expects, in the kernel's first table of 64 */
    SPARE = 16 << 20 /* bytes that stay free */
};

const char *kept_reason = "";

static char name[64 + 3 + 8 + 1], draft[sizeof name + 20], seen[80];

static int not_kept(const char *reason) { return kept_reason = reason, -1; }

static int open_folder(int at, const char *path) { return openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC); }

/* ---- a folder and all in it ---- */

/* Call `each` for all that a folder holds. */
static void for_all(int at, const char *path, void (*each)(int at, const char *entry, void *with), void *with)
{
    int file = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = file < 0 ? NULL : fdopendir(file);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) each(dirfd(folder), entry->d_name, with);
    if (folder) closedir(folder);
}

static void remove_entry(int at, const char *entry, void *with)
{
    (void)with;
    if (!unlinkat(at, entry, 0)) return;
    remove_tree(at, entry);
}

void remove_tree(int at, const char *path)
{
    struct stat about;
    if (fstatat(at, path, &about, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(about.st_mode)) return;
    fchmodat(at, path, 0700, 0);
    for_all(at, path, remove_entry, NULL);
    unlinkat(at, path, AT_REMOVEDIR);
}

struct summary { /* of files, so that a change of any of them is seen */
    uint64_t count, sum;
};

static void summarize(int at, const char *entry, void *with)
{
    struct summary *s = with;
    struct stat a;
    if (fstatat(at, entry, &a, AT_SYMLINK_NOFOLLOW)) return;
    uint64_t modified = (uint64_t)a.st_mtim.tv_sec * 1000000000 + (uint64_t)a.st_mtim.tv_nsec;
    uint64_t changed = (uint64_t)a.st_ctim.tv_sec * 1000000000 + (uint64_t)a.st_ctim.tv_nsec;
    s->count++;
    s->sum += a.st_ino + 3 * (uint64_t)a.st_size + 5 * modified + 7 * changed + 11 * (uint64_t)a.st_mode;
    if (S_ISDIR(a.st_mode)) for_all(at, entry, summarize, s);
}

static void note_of(int entry, int is_erofs, char text[64])
{
    struct summary all = {0, 0};
    if (is_erofs) summarize(entry, "image", &all);
    else for_all(entry, "root", summarize, &all);
    snprintf(text, 64, "%llu %016llx\n", (unsigned long long)all.count, (unsigned long long)all.sum);
}

/* ---- the cache ---- */

static int is_private(int file)
{
    struct stat about;
    return !fstat(file, &about) && about.st_uid == geteuid() && !(about.st_mode & 022);
}

/* CACHE/roots, made where it is missing; -1 where this user cannot have one that programs can be run from. */
static int open_roots(void)
{
    const char *cache = getenv("IMAGEKIT_CACHE"), *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char path[4096];
    struct statvfs about;
    int n = cache ? snprintf(path, sizeof path, "%s/roots", cache)
            : base && *base ? snprintf(path, sizeof path, "%s/imagekit/roots", base)
                            : snprintf(path, sizeof path, "%s/.cache/imagekit/roots", home ? home : "");
    if (cache ? !*cache : !(base && *base) && !(home && *home)) return not_kept("there is no folder for a cache");
    struct stat of_home;
    if (!cache && !(base && *base) && (stat(home, &of_home) || of_home.st_uid != geteuid()))
        return not_kept("the home is another's");
    if (n >= (int)sizeof path || *path != '/') return not_kept("the cache's path is too long or not absolute");
    int roots = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (roots < 0) {
        size_t given = cache || (base && *base) ? 1 : strlen(home) + 1; /* no home is made */
        for (char *slash = path + given; (slash = strchr(slash, '/')); *slash++ = '/') {
            *slash = 0;
            mkdir(path, 0700);
        }
        mkdir(path, 0700);
        roots = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    }
    if (roots < 0) return not_kept("the cache cannot be written to");
    if (is_private(roots) && !fstatvfs(roots, &about) && !(about.f_flag & ST_NOEXEC)) return roots;
    close(roots);
    return not_kept("the cache's folder is another's, others may write to it, or no program may be run from there");
}

static int name_entry(const struct image *image)
{
    char boot[8];
    int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(file, boot, sizeof boot);
    close(file);
    snprintf(name, sizeof name, "%s-b-%.8s", image->sum, boot);
    snprintf(draft, sizeof draft, "%s.draft-%d", name, (int)getpid());
    snprintf(seen, sizeof seen, "seen-%s", image->vouched);
    return n == sizeof boot;
}

/* Lock an entry: by a file of it, since a program can leave its root by a folder that it finds open (CVE-2024-21626).
   The file stays open in the program, under a high number, and as long as that runs nobody removes the entry. */
static int lock(int entry, int how, int flags)
{
    struct stat about;
    int access = how == LOCK_EX ? O_RDWR : O_RDONLY, high = -1; /* NFS wants it so; a program gets one to read only */
    int file = openat(entry, "lock", access | O_NOFOLLOW | O_CLOEXEC | flags, 0600);
    if (file >= 0 && !flock(file, how | LOCK_NB) && !fstat(file, &about) && about.st_nlink) /* else it was removed */
        if ((high = fcntl(file, F_DUPFD, HIGH)) < 0) high = fcntl(file, F_DUPFD, 3);
    if (file >= 0) close(file);
    return high;
}

/* Whether all files of an entry are as they were when they were unpacked. */
static int is_whole(int entry, int is_erofs)
{
    char is[64], was[64] = "";
    int file = openat(entry, "note", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0 || read(file, was, sizeof was - 1) <= 0) was[0] = 0;
    if (file >= 0) close(file);
    note_of(entry, is_erofs, is);
    return !strcmp(is, was);
}

/* Looking at every file, and verifying the signature, take longer than all else: once a minute they are done. */
static int was_seen(int entry)
{
    struct stat about;
    time_t now = time(NULL);
    if (fstatat(entry, seen, &about, AT_SYMLINK_NOFOLLOW)) return 0;
    return about.st_mtime <= now && now - about.st_mtime < LASTING;
}

static void see(int entry)
{
    verify_image();
    int file = openat(entry, seen, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file >= 0) futimens(file, NULL), close(file);
}

/* What is unfinished, or of an earlier start of the machine, is nobody's unless it is locked. */
static void sweep(int roots, const char *entry, void *with)
{
    (void)with;
    if (strlen(entry) < strlen(name) || strncmp(entry + 64, "-b-", 3)) return; /* of `imagekit run` */
    int is_stale = strcmp(entry + 64, name + 64);
    int folder = is_stale ? open_folder(roots, entry) : -1, file = lock(folder, LOCK_EX, 0);
    if (folder >= 0 && (file >= 0 || faccessat(folder, "lock", F_OK, 0))) remove_tree(roots, entry);
    if (folder >= 0) close(folder);
    if (file >= 0) close(file);
}

void copy_erofs(const struct image *image, int file)
{
    size_t size;
    open_pieces(image, 0);
    for (const uint8_t *p; (p = next_piece(&size));)
        for (ssize_t n; size; p += n, size -= (size_t)n)
            if ((n = write(file, p, size)) < 0) fail("cannot copy the file system: %s", strerror(errno));
    close_pieces(NULL);
}

static int drafts = -1; /* where there is a draft */
static const char *begun;

void begin_draft(int folder, const char *path)
{
    drafts = folder;
    begun = path;
}

void drop_draft(void)
{
    int folder = drafts;
    drafts = -1;
    if (folder != -1) remove_tree(folder, begun);
}

/* Unpack into a draft, and give it its name; that an image of the same name was made meanwhile is as good. */
static void fill(const struct image *image, int roots)
{
    char note[64];
    int entry = -1, held = -1, root, file;
    if (!flock(roots, LOCK_EX)) for_all(roots, ".", sweep, NULL); /* nobody has a folder now that has no lock yet */
    if (!mkdirat(roots, draft, 0700)) { /* after that: in a container every start has the same number */
        begin_draft(roots, draft);
        entry = open_folder(roots, draft), held = lock(entry, LOCK_EX, O_CREAT);
    }
    flock(roots, LOCK_UN);
    if (held < 0) {
        if (entry >= 0) close(entry);
        return drop_draft();
    }
    if (image->is_erofs) {
        file = openat(entry, "image", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
        if (file < 0) fail("cannot write to the cache: %s", strerror(errno));
        copy_erofs(image, file);
        close(file);
    } else {
        if (mkdirat(entry, "root", 0755) || (root = open_folder(entry, "root")) < 0) fail("cannot write to the cache");
        open_pieces(image, 0);
        untar(root, !geteuid());
        close_pieces(NULL);
        make_mount_points(root);
        close(root);
    }
    note_of(entry, image->is_erofs, note);
    file = openat(entry, "note", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0 || write(file, note, strlen(note)) < 0) fail("cannot write to the cache: %s", strerror(errno));
    close(file);
    flock(held, LOCK_SH); /* enough to keep others from removing it, and they can use it at once */
    if (!renameat(roots, draft, roots, name)) begin_draft(-1, NULL);
    drop_draft();
    close(entry), close(held);
}

/* Whether the name is still that of the entry which we opened: another may have removed it and made a new one. */
static int is_named(int roots, int entry)
{
    struct stat ours, now;
    return !fstat(entry, &ours) && !fstatat(roots, name, &now, AT_SYMLINK_NOFOLLOW) && ours.st_ino == now.st_ino;
}

/* The entry, if all of it is there and as it was; what was changed is removed. */
static int use(const struct image *image, int roots)
{
    int entry = open_folder(roots, name), held = lock(entry, LOCK_SH, 0);
    if (entry < 0) return -1;
    if (held >= 0 && was_seen(entry)) return entry;
    if (held >= 0 && is_whole(entry, image->is_erofs)) return see(entry), entry;
    int is_nobodys = held >= 0 ? !flock(held, LOCK_EX | LOCK_NB) : faccessat(entry, "lock", F_OK, 0);
    if (is_nobodys && is_named(roots, entry)) remove_tree(roots, name);
    else if (!is_nobodys) not_kept("what is in the cache was changed, and is being used");
    close(entry);
    if (held >= 0) close(held);
    return -1;
}

static int find(const struct image *image, int roots)
{
    struct statvfs room;
    int entry = use(image, roots);
    if (entry >= 0 || *kept_reason) return entry;
    verify_image();
    if (fstatvfs(roots, &room) || room.f_bavail * room.f_frsize < image->size + SPARE)
        return not_kept("the cache has no room");
    fill(image, roots);
    entry = use(image, roots);
    return entry < 0 ? not_kept("the cache cannot be written to") : entry;
}

int keep(const struct image *image)
{
    int roots = open_roots(), entry = -1;
    if (roots >= 0 && !name_entry(image)) not_kept("/proc/sys/kernel/random/boot_id cannot be read");
    else if (roots >= 0) entry = find(image, roots);
    if (roots >= 0) close(roots);
    if (entry < 0) verify_image();
    return entry;
}
