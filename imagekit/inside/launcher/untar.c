/* Unpack a tar into an empty folder that nobody else can reach: by a reader that takes one strict form (ustar, pax and
   GNU's long names), and by descriptors of folders that are opened part by part, so that no name leads through a
   symlink or out of the folder. */

#include "launcher.h"

enum { BLOCK = 512, DEPTH = 64, LONGEST = 4096, MOST_MEMBERS = 1 << 20, MOST_RECORDS = 1 << 17, MOST_NAMES = 64 << 20 };
static const uint64_t MOST_ID = 4294967294, LATEST = 1ULL << 37; /* the year 6325 */

struct member {
    char name[LONGEST + 1], link[LONGEST + 1];
    uint64_t size, uid, gid, seconds, nanoseconds;
    mode_t mode;
    char kind;
};
struct folder { /* of which mode and time are set when all is in it */
    char *name;
    mode_t mode;
    struct timespec time;
};

static const uint8_t *piece;
static size_t left; /* of piece */
static struct { char name[256]; int file; } way[DEPTH]; /* the open folders that lead to the last member */
static int root, depth, has_owners;
static struct folder *folders;
static size_t count, room, names; /* names: bytes of those that are remembered */
static struct folder of_root = {NULL, 0755, {0, 0}};
static int is_root_named;
static struct member member;

static _Noreturn void refuse(const char *what) { fail("refused to unpack %.200s: %s", member.name, what); }

static _Noreturn void broken(void)
{
    int error = errno;
    refuse(error == ENOSPC || error == EDQUOT ? "no room is left" : strerror(error));
}

/* ---- reading ---- */

static int more(void)
{
    while (!left)
        if (!(piece = next_piece(&left))) return 0;
    return 1;
}

static void take(void *to, uint64_t size)
{
    for (size_t n; size; size -= n, piece += n, left -= n) {
        if (!more()) refuse("the archive ends in it");
        n = size < left ? (size_t)size : left;
        to = (char *)memcpy(to, piece, n) + n;
    }
}

static void pass_padding(uint64_t size)
{
    char zeros[BLOCK] = {0}, found[BLOCK];
    take(found, -size % BLOCK);
    if (memcmp(found, zeros, -size % BLOCK)) refuse("something is hidden behind it");
}

static uint64_t octal(const char *field, int size)
{
    uint64_t n = 0;
    int i = 0;
    if (*field & 0x80) { /* base 256, which GNU tar writes where octal has no room */
        if ((uint8_t)*field != 0x80) refuse("a number is negative or too large");
        for (i = 1; i < size; n = n << 8 | (uint8_t)field[i++])
            if (n >> 54) refuse("a number is negative or too large");
        return n;
    }
    while (i < size && field[i] == ' ') i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) n = n << 3 | (uint64_t)(field[i] - '0');
    for (int rest = i; rest < size; rest++)
        if (field[rest] && field[rest] != ' ') refuse("a number is none");
    return n;
}

static uint64_t decimal(const char *text, uint64_t *nanoseconds)
{
    char *stop;
    uint64_t n = strtoull(text, &stop, 10), part = 100000000;
    if (nanoseconds) *nanoseconds = 0;
    if (*text < '0' || *text > '9' || stop > text + 18) refuse("a number is none");
    if (nanoseconds && *stop == '.')
        for (stop++; *stop >= '0' && *stop <= '9'; stop++, part /= 10)
            *nanoseconds += part * (uint64_t)(*stop - '0');
    if (*stop) refuse("a number is none");
    return n;
}

static void long_name(char *to, const char *text, size_t size)
{
    if (!size || size > LONGEST || memchr(text, 0, size)) refuse("a name is none");
    memcpy(to, text, size);
    to[size] = 0;
}

enum { PATH = 1, LINK = 2, SIZE = 4, UID = 8, GID = 16, TIME = 32, PAX = 64, GNU = 128 }; /* what was set; by which */

/* One record of a pax header ("pax Extended Header"); which of the fields above it set. */
static int record(struct member *to, const char *key, const char *value, size_t size)
{
    static const char *IGNORED[] = {"atime", "ctime", "uname", "gname", "comment", "hdrcharset", NULL};
    if (!strcmp(key, "path")) return long_name(to->name, value, size), PATH;
    if (!strcmp(key, "linkpath")) return long_name(to->link, value, size), LINK;
    if (!strncmp(key, "SCHILY.xattr.", 13)) return 0; /* what runs has the rights of its user, nothing more */
    for (const char **name = IGNORED; *name; name++)
        if (!strcmp(key, *name)) return 0;
    if (strlen(value) != size) refuse("a number is none");
    if (!strcmp(key, "size")) return to->size = decimal(value, NULL), SIZE;
    if (!strcmp(key, "uid")) return to->uid = decimal(value, NULL), UID;
    if (!strcmp(key, "gid")) return to->gid = decimal(value, NULL), GID;
    if (!strcmp(key, "mtime"))
        return *value == '-' ? 0 : (to->seconds = decimal(value, &to->nanoseconds), TIME);
    refuse("a record of it is not known");
}

static int records(struct member *to, uint64_t size, int is_global)
{
    static char text[MOST_RECORDS + 1];
    int set = 0;
    if (!size || size > MOST_RECORDS) refuse("its records are too long");
    take(text, size);
    pass_padding(size);
    text[size] = 0;
    for (char *line = text, *stop = text + size, *key, *equal, *end; line < stop; line = end) {
        size_t length = strtoul(line, &key, 10);
        if (*line < '1' || *line > '9' || length > (size_t)(stop - line)) refuse("its records are broken");
        end = line + length;
        if (key >= end || *key != ' ' || end[-1] != '\n' || !(equal = memchr(key, '=', length - (size_t)(key - line))))
            refuse("its records are broken");
        *equal = end[-1] = 0;
        if (strlen(key + 1) != (size_t)(equal - key) - 1) refuse("its records are broken");
        if (is_global && strcmp(key + 1, "comment")) refuse("it is a global header");
        int one = record(to, key + 1, equal + 1, (size_t)(end - equal) - 2);
        if (one & set) refuse("a record of it is there twice");
        set |= one;
    }
    return set;
}

static int gnu_name(char *to, uint64_t size)
{
    char text[LONGEST + 2];
    if (size < 2 || size > sizeof text) refuse("its name is too long");
    take(text, size);
    pass_padding(size);
    if (text[size - 1]) refuse("its name is none");
    long_name(to, text, (size_t)size - 1);
    return GNU;
}

static void check_sum(const char *block)
{
    uint64_t sum = 8 * ' ';
    for (int i = 0; i < BLOCK; i++)
        if (i < 148 || i >= 156) sum += (uint8_t)block[i];
    if (sum != octal(block + 148, 8)) refuse("its header is broken");
    if (memcmp(block + 257, "ustar\0" "00", 8) && memcmp(block + 257, "ustar  ", 8))
        refuse("its header is of no known kind");
}

/* A field of text, which may fill its room; behind a zero there are only zeros, or others would read another name. */
static size_t text(char *to, const char *field, size_t room)
{
    size_t n = strnlen(field, room);
    for (size_t i = n; i < room; i++)
        if (field[i]) refuse("a name has a zero byte");
    memcpy(to, field, n);
    to[n] = 0;
    return n;
}

static void from_block(struct member *to, const char *block, int set)
{
    char name[101], link[101], prefix[156] = "";
    text(name, block, 100), text(link, block + 157, 100);
    if (!block[262]) text(prefix, block + 345, 155); /* GNU has other things there */
    if (!(set & PATH)) snprintf(to->name, sizeof to->name, "%s%s%s", prefix, *prefix ? "/" : "", name);
    if (!(set & LINK)) strcpy(to->link, link);
    if (!(set & UID)) to->uid = octal(block + 108, 8);
    if (!(set & GID)) to->gid = octal(block + 116, 8);
    if (!(set & TIME)) to->seconds = octal(block + 136, 12), to->nanoseconds = 0;
    uint64_t size = octal(block + 124, 12);
    if (!(block[124] & 0x80) && strspn(block + 124, " ") >= strnlen(block + 124, 12)) refuse("it has no size");
    if (set & SIZE && size && size != to->size && size != 077777777777) refuse("it has two sizes");
    if (!(set & SIZE)) to->size = size;
    to->mode = (mode_t)octal(block + 100, 8);
    to->kind = block[156] ? block[156] : '0';
    if (to->uid > MOST_ID || to->gid > MOST_ID || to->seconds > LATEST) refuse("a number is too large");
}

/* The next member; 0 at the end, behind which there are zeros only. */
static int next_member(void)
{
    char block[BLOCK];
    static const char zeros[BLOCK];
    for (int set = 0;; ) {
        take(block, BLOCK);
        if (!memcmp(block, zeros, BLOCK)) {
            if (set) refuse("the archive ends in it");
            break;
        }
        check_sum(block);
        uint64_t size = octal(block + 124, 12);
        int kind = block[156], one = 0;
        if (kind == 'g' && !set) records(&member, size, 1);
        else if (kind == 'x') one = records(&member, size, 0) | PAX;
        else if (kind == 'L') one = gnu_name(member.name, size) | PATH;
        else if (kind == 'K') one = gnu_name(member.link, size) | LINK;
        else if (kind == 'g') refuse("a global header stands between its own");
        else return from_block(&member, block, set), 1;
        if (one & set & ~GNU || ((one | set) & (PAX | GNU)) == (PAX | GNU)) refuse("it has two names");
        set |= one;
    }
    strcpy(member.name, "the end");
    for (take(block, BLOCK);; take(block, BLOCK)) {
        if (memcmp(block, zeros, BLOCK)) refuse("something comes after it");
        if (!more()) return 0;
    }
}

/* ---- writing ---- */

static void leave(int level)
{
    while (depth > level) close(way[--depth].file);
}

/* Check a name and cut "./" and "/" off its ends: no part may be "..", ".", empty or too long, nor hold control
   characters. NULL is the folder that everything is unpacked into. */
static char *checked(char *name)
{
    const char *given = name;
    if (!strncmp(name, "./", 2)) name += 2;
    size_t length = strlen(name), parts = 1;
    if (length && name[length - 1] == '/') name[--length] = 0;
    for (char *p = name; *p; p++)
        if ((uint8_t)*p < 0x20 || *p == 0x7f) refuse("its name has control characters");
    if (!strcmp(name, ".") || (!length && name > given)) return NULL;
    for (char *part = name, *slash; part; part = slash ? slash + 1 : NULL, parts++) {
        slash = strchr(part, '/');
        size_t n = slash ? (size_t)(slash - part) : strlen(part);
        if (!n || n > 255 || !strncmp(part, "..", n) || parts > DEPTH) refuse("its name leads elsewhere");
    }
    return name;
}

/* The folder of a checked name, which is opened part by part; `last` is what remains of the name. */
static int folder_of(char *name, char **last)
{
    int level = 0, file = root;
    for (char *slash; (slash = strchr(name, '/')); *slash = '/', name = slash + 1, file = way[level++].file) {
        *slash = 0;
        if (level < depth && !strcmp(way[level].name, name)) continue;
        leave(level);
        int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, next = openat(file, name, flags);
        if (next < 0 && errno == ENOENT && !mkdirat(file, name, 0755)) next = openat(file, name, flags);
        if (next < 0) broken();
        strcpy(way[depth].name, name);
        way[depth++].file = next;
    }
    *last = name;
    return file;
}

static void own(int folder, const char *name)
{
    if (has_owners && (member.uid || member.gid) &&
        fchownat(folder, name, (uid_t)member.uid, (gid_t)member.gid, AT_SYMLINK_NOFOLLOW) && errno != EPERM &&
        errno != EINVAL) /* those of a root that has few users, in a container */
        broken();
}

static void write_file(int folder, const char *name)
{
    int file = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, member.mode & 0777);
    if (file < 0) broken();
    for (uint64_t size = member.size; size;) {
        if (!more()) refuse("the archive ends in it");
        ssize_t n = write(file, piece, size < left ? (size_t)size : left);
        if (n < 0) broken();
        piece += n;
        left -= (size_t)n;
        size -= (uint64_t)n;
    }
    pass_padding(member.size);
    own(folder, name);
    struct timespec times[2] = {{0, UTIME_OMIT}, {(time_t)member.seconds, (long)member.nanoseconds}};
    if (futimens(file, times) || close(file)) broken();
}

static void make_link(int folder, const char *name, char *target)
{
    struct stat about;
    char *last;
    int kept = fcntl(folder, F_DUPFD_CLOEXEC, 0), from = (target = checked(target)) ? folder_of(target, &last) : -1;
    if (from < 0 || fstatat(from, last, &about, AT_SYMLINK_NOFOLLOW) || !S_ISREG(about.st_mode))
        refuse("it is a link to what is no earlier file");
    if (linkat(from, last, kept, name, 0)) broken();
    close(kept);
}

/* A folder that a member named has the mode 0700 until the end, one that only stands in a name 0755. */
static void make_folder(int folder, const char *last, const char *name)
{
    struct stat about;
    struct folder it = {NULL, member.mode & 01777, {(time_t)member.seconds, (long)member.nanoseconds}};
    if (!last) {
        if (is_root_named++) refuse("it is there twice");
        own(root, ".");
        of_root = it;
        return;
    }
    if (mkdirat(folder, last, 0700)) {
        if (errno != EEXIST || fstatat(folder, last, &about, AT_SYMLINK_NOFOLLOW)) broken();
        if (!S_ISDIR(about.st_mode) || (about.st_mode & 0777) == 0700) refuse("it is there twice");
        if (fchmodat(folder, last, 0700, 0)) broken();
    }
    own(folder, last);
    if (count == room && !(folders = realloc(folders, (room = 2 * room + 256) * sizeof *folders))) broken();
    if ((names += strlen(name)) > MOST_NAMES || !(it.name = strdup(name))) refuse("it has too many folders");
    folders[count++] = it;
}

static void unpack(void)
{
    if (member.kind != '5' && *member.name && member.name[strlen(member.name) - 1] == '/') refuse("it is no folder");
    char *last = NULL, *name = checked(member.name);
    int folder = name ? folder_of(name, &last) : root;
    if (!name && member.kind != '5') refuse("it is no folder");
    if (member.kind != '0' && member.size) refuse("only files have a size");
    switch (member.kind) {
    case '0': return write_file(folder, last);
    case '1': return make_link(folder, last, member.link);
    case '2':
        if (!*member.link || symlinkat(member.link, folder, last)) broken();
        return own(folder, last);
    case '3': case '4': return; /* a device: /dev is the host's */
    case '5': return make_folder(folder, last, name);
    case '6':
        if (mkfifoat(folder, last, member.mode & 0777)) broken();
        return own(folder, last);
    default: refuse("it is of no known kind");
    }
}

/* Last to first: an outer folder may not let us in any more when it has its mode. */
static void finish_folders(void)
{
    while (count) {
        struct folder *it = folders + --count;
        char *last;
        int folder = folder_of(it->name, &last);
        struct timespec times[2] = {{0, UTIME_OMIT}, it->time};
        if (fchmodat(folder, last, it->mode, 0) || utimensat(folder, last, times, 0)) broken();
        free(it->name);
    }
    leave(0);
    struct timespec times[2] = {{0, UTIME_OMIT}, of_root.time};
    if (fchmod(root, of_root.mode) || futimens(root, times)) broken();
}

void untar(int folder, int with_owners)
{
    mode_t before = umask(0);
    root = folder;
    has_owners = with_owners;
    if (fchmod(root, 0700)) broken(); /* nobody looks in before all is there */
    for (int n = 0; next_member(); n++) {
        if (n == MOST_MEMBERS) refuse("the archive has too many members");
        unpack();
    }
    finish_folders();
    umask(before);
}
