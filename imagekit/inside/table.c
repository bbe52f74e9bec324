/* Partition tables: GPT (UEFI 2.10, section 5.3) and MBR, read, and enlarged when their disk was.

   A disk is not trusted: what is read is bounded and checked, and no number of it is used before that.

   Enlarging survives a power cut at any moment. Linux looks at the primary GPT alone (block/partitions/efi.c) and wants
   the sums of header and entries right, which lie in different sectors. So the enlarged entries are written where
   nothing lies, 32 sectors further on, and then the header, which names their place: one sector, old or new. Then both
   once more, to where they belong. Before that come the backup's entries and header, at the new end of the disk, and
   the protective MBR, whose size nobody needs. Each is on the disk before the next is written. What was cut off is done
   again from the beginning while the header tells the old size; after that only the place is an unusual one. */

#include "boot.h"
#include <sys/ioctl.h>
#include <linux/blkpg.h>

enum { ENTRY = 128, ENTRIES = MOST_PARTITIONS * ENTRY, HEADER = 92, FIRST = 2, SECOND = FIRST + ENTRIES / SECTOR };
enum { MBR_SERIAL = 440, MBR_ENTRIES = 446, MBR_ENTRY = 16, PROTECTIVE = 0xee }; /* UEFI 2.10, section 5.2 */
enum { TAIL = ENTRIES / SECTOR + 1, GRAIN = 8 }; /* sectors: of the backup, and what partitions end at a multiple of */

/* ---- numbers ---- */

static uint64_t get(const uint8_t *p, int bytes)
{
    uint64_t value = 0;
    while (bytes--) value = value << 8 | p[bytes];
    return value;
}

static void put(uint8_t *p, int bytes, uint64_t value)
{
    for (; bytes--; value >>= 8) *p++ = (uint8_t)value;
}

static uint32_t crc32(const uint8_t *p, size_t size)
{
    uint32_t sum = ~0U;
    while (size--) {
        sum ^= *p++;
        for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1 ? 0xedb88320 : 0);
    }
    return ~sum;
}

/* ---- fields ---- */

static uint8_t *gpt_entry(struct table *t, int number) { return t->entries + (number - 1) * ENTRY; }

static uint8_t *mbr_entry(struct table *t, int number) { return t->mbr + MBR_ENTRIES + (number - 1) * MBR_ENTRY; }

static int is_used(const uint8_t *entry) { return get(entry, 8) || get(entry + 8, 8); }

static int most(const struct table *t) { return t->is_gpt ? (int)get(t->header + 80, 4) : 4; }

/* Where a partition lies; no sectors for one that is not there. */
struct extent partition(struct table *t, int number)
{
    struct extent none = {0, 0};
    const uint8_t *gpt = gpt_entry(t, number), *mbr = mbr_entry(t, number);
    if (!t->is_gpt) return mbr[4] ? (struct extent){get(mbr + 8, 4), get(mbr + 12, 4)} : none;
    uint64_t first = get(gpt + 32, 8), last = get(gpt + 40, 8);
    return is_used(gpt) && first <= last && last < t->sectors ? (struct extent){first, last - first + 1} : none;
}

/* Its id, as root=PARTUUID= has it: the unique GUID, or the serial number of the disk and the partition's own. */
static void name_partition(struct table *t, int number, char id[40])
{
    const uint8_t *p = gpt_entry(t, number) + 16;
    if (t->is_gpt)
        snprintf(id, 40, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", (unsigned)get(p, 4),
                 (unsigned)get(p + 4, 2), (unsigned)get(p + 6, 2), p[8], p[9], p[10], p[11], p[12], p[13], p[14],
                 p[15]);
    else snprintf(id, 40, "%08x-%02x", (unsigned)get(t->mbr + MBR_SERIAL, 4), (unsigned)number);
}

/* ---- reading ---- */

static int read_at(int disk, void *bytes, size_t size, uint64_t sector)
{
    return pread(disk, bytes, size, (off_t)(sector * SECTOR)) == (ssize_t)size ? 0 : -1;
}

static uint32_t header_sum(const uint8_t *header)
{
    uint8_t copy[HEADER];
    memcpy(copy, header, sizeof copy);
    put(copy + 16, 4, 0);
    return crc32(copy, sizeof copy);
}

static const char *read_gpt(struct table *t)
{
    const uint8_t *header = t->header;
    if (read_at(t->disk, t->header, SECTOR, 1) || memcmp(header, "EFI PART", 8)) return "it has no GPT";
    uint64_t where = get(header + 72, 8), count = get(header + 80, 4);
    if (get(header + 12, 4) != HEADER || get(header + 16, 4) != header_sum(header) || get(header + 24, 8) != 1)
        return "its GPT has a damaged header";
    if (get(header + 84, 4) != ENTRY || !count || count > MOST_PARTITIONS || where < FIRST || where >= t->sectors)
        return "its GPT has entries of another kind";
    if (read_at(t->disk, t->entries, count * ENTRY, where)) return "its GPT lies beyond its end";
    return crc32(t->entries, count * ENTRY) == get(header + 88, 4) ? NULL : "its GPT has damaged entries";
}

/* Read the table of a disk or of a file; what is wrong with it, or NULL. The disk is open then: close it. */
const char *read_partitions(struct table *t, const char *path, int flags)
{
    memset(t, 0, sizeof *t);
    t->disk = open(path, flags | O_CLOEXEC);
    off_t end = t->disk < 0 ? -1 : lseek(t->disk, 0, SEEK_END);
    if (end < 0) return strerror(errno);
    t->sectors = (uint64_t)end / SECTOR;
    if (read_at(t->disk, t->mbr, SECTOR, 0)) return "it cannot be read";
    if (get(t->mbr + 510, 2) != 0xaa55) return "it has no partition table";
    for (int number = 1; number <= 4; number++) t->is_gpt |= mbr_entry(t, number)[4] == PROTECTIVE;
    return t->is_gpt ? read_gpt(t) : NULL;
}

/* The number of the partition with this id; 0 when there is none. */
int find_partition(struct table *t, const char *wanted)
{
    char id[40];
    for (int number = 1; number <= most(t); number++) {
        name_partition(t, number, id);
        if (partition(t, number).sectors && !strcasecmp(id, wanted)) return number;
    }
    return 0;
}

/* Its name, less what is not ASCII; empty in an MBR, which has none. */
void label_of(struct table *t, int number, char label[37])
{
    const uint8_t *name = gpt_entry(t, number) + 56;
    int length = 0;
    for (int i = 0; t->is_gpt && i < 36 && get(name + 2 * i, 2); i++)
        label[length++] = get(name + 2 * i, 2) > 0x20 && get(name + 2 * i, 2) < 0x7f ? (char)name[2 * i] : '?';
    label[length] = 0;
}

/* The number of the first partition with this name; 0 when there is none. */
int find_labelled(struct table *t, const char *wanted)
{
    char label[37];
    for (int number = 1; t->is_gpt && number <= most(t); number++) {
        label_of(t, number, label);
        if (partition(t, number).sectors && !strcmp(label, wanted)) return number;
    }
    return 0;
}

/* Whether it is there, and of this type. */
int is_of_type(struct table *t, int number, const uint8_t type[16])
{
    return t->is_gpt && number <= most(t) && partition(t, number).sectors && !memcmp(gpt_entry(t, number), type, 16);
}

/* ---- enlarging ---- */

static int store(struct table *t, const void *bytes, size_t size, uint64_t sector)
{
    if (!t->writes--) return errno = ECANCELED;
    ssize_t n = pwrite(t->disk, bytes, size, (off_t)(sector * SECTOR));
    return n == (ssize_t)size && !fsync(t->disk) ? 0 : (n >= 0 && n < (ssize_t)size ? (errno = EIO) : errno);
}

static int store_header(struct table *t, uint64_t here, uint64_t other, uint64_t entries)
{
    uint8_t header[SECTOR];
    memcpy(header, t->header, sizeof header);
    put(header + 24, 8, here);
    put(header + 32, 8, other);
    put(header + 72, 8, entries);
    put(header + 16, 4, header_sum(header));
    return store(t, header, sizeof header, here);
}

/* Where partitions begin: the first sector of the first one. */
static uint64_t first_of_all(struct table *t)
{
    uint64_t first = UINT64_MAX;
    for (int number = 1; number <= most(t); number++) {
        struct extent extent = partition(t, number);
        if (extent.sectors && extent.start < first) first = extent.start;
    }
    return first;
}

static void enlarge_protective(struct table *t)
{
    uint64_t sectors = t->sectors - 1 > UINT32_MAX ? UINT32_MAX : t->sectors - 1;
    for (int n = 1; n <= 4; n++)
        if (mbr_entry(t, n)[4] == PROTECTIVE && get(mbr_entry(t, n) + 8, 4) == 1) put(mbr_entry(t, n) + 12, 4, sectors);
}

/* Write the entries to where nothing lies, and let the header name that place. */
static int switch_to(struct table *t, uint64_t entries)
{
    uint64_t usable = get(t->header + 40, 8), least = entries + ENTRIES / SECTOR;
    if (usable < least) put(t->header + 40, 8, least);
    int failed = store(t, t->entries, (size_t)most(t) * ENTRY, entries) ||
                 store_header(t, 1, t->sectors - 1, entries);
    put(t->header + 40, 8, usable);
    return failed;
}

static const char *enlarge_gpt(struct table *t, int number, uint64_t sectors)
{
    uint64_t last = t->sectors - 1, was = get(t->header + 72, 8);
    size_t size = (size_t)most(t) * ENTRY;
    if (first_of_all(t) < SECOND + ENTRIES / SECTOR || (was != FIRST && was != SECOND))
        return "there is no room for a second table before the first partition";
    put(gpt_entry(t, number) + 40, 8, partition(t, number).start + sectors - 1);
    put(t->header + 88, 4, crc32(t->entries, size));
    put(t->header + 48, 8, last - TAIL);
    enlarge_protective(t);
    return store(t, t->entries, size, last - TAIL + 1) || store_header(t, last, 1, last - TAIL + 1) ||
           store(t, t->mbr, SECTOR, 0) || (was == FIRST && switch_to(t, SECOND)) || switch_to(t, FIRST)
               ? strerror(errno)
               : NULL;
}

static const char *enlarge_mbr(struct table *t, int number, uint64_t sectors)
{
    memcpy(mbr_entry(t, number) + 5, "\xfe\xff\xff", 3); /* its end is beyond what cylinders, heads and sectors reach */
    put(mbr_entry(t, number) + 12, 4, sectors);
    return store(t, t->mbr, SECTOR, 0) ? strerror(errno) : NULL;
}

/* Enlarge a partition up to the end of its disk, if it is the last one and there is anything to gain. What went wrong,
   or NULL; `*grown` tells whether the table was changed. */
const char *enlarge(struct table *t, int number, int *grown)
{
    struct extent now = partition(t, number);
    uint64_t end = t->is_gpt ? t->sectors - TAIL : t->sectors;
    if (!t->is_gpt && end > UINT32_MAX) end = UINT32_MAX;
    *grown = 0;
    for (int n = 1; n <= most(t); n++)
        if (partition(t, n).start > now.start) return NULL;
    end -= end % GRAIN;
    if (t->sectors <= TAIL || end <= now.start + now.sectors) return NULL;
    const char *wrong = (t->is_gpt ? enlarge_gpt : enlarge_mbr)(t, number, end - now.start);
    *grown = !wrong;
    return wrong;
}

/* Tell the kernel, which goes on using the partition. Its view of the disk may be right already, after a power cut. */
int tell_kernel(struct table *t, int number)
{
    struct extent now = partition(t, number);
    struct blkpg_partition part = {(long long)now.start * SECTOR, (long long)now.sectors * SECTOR, number, "", ""};
    struct blkpg_ioctl_arg order = {BLKPG_RESIZE_PARTITION, 0, sizeof part, &part};
    return ioctl(t->disk, BLKPG, &order);
}

/* grow DISK ID [WRITES]: enlarge the partition, and tell its number, start and sectors. It stops before it writes more
   often than it may, as a power cut would: that is for tests. */
int grow_partition(char **words)
{
    static struct table t;
    int grown, number = 0;
    const char *wrong = read_partitions(&t, words[0], O_RDWR);
    if (!wrong && !(number = find_partition(&t, words[1]))) wrong = "it has no such partition";
    t.writes = number && words[2] ? atoi(words[2]) : -1;
    if (!wrong) wrong = enlarge(&t, number, &grown);
    if (wrong) fprintf(stderr, "%s: %s\n", words[0], wrong);
    if (wrong) return 1;
    if (grown) tell_kernel(&t, number);
    struct extent now = partition(&t, number);
    printf("%d %llu %llu\n", number, (unsigned long long)now.start, (unsigned long long)now.sectors);
    return 0;
}
