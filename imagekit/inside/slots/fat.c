/* The files of one folder of a FAT volume (Microsoft, "FAT32 File System Specification" 1.03), read.

   Anybody may have written the volume: every number is checked, and every chain of clusters ends. What fatchange.c
   changes of it never depends on what the table says of clusters that no file and no folder reaches: they are free. So
   whatever a power cut left behind costs no room. */

#include "slots.h"

enum { LABEL = 0x08, FOLDER = 0x10, DEEPEST = 8 };
enum { MOST_CLUSTERS = 4 << 20, LARGEST_FOLDER = 2 << 20 };

static const char DAMAGED[] = "the file system of its boot partition is damaged";

uint64_t cluster_at(const struct volume *v, uint32_t cluster) { return v->data + (uint64_t)(cluster - 2) * v->cluster; }

uint64_t entry_at(const struct volume *v, uint32_t number)
{
    if (!v->where) return v->root + (uint64_t)number * ROW;
    uint32_t per = v->cluster / ROW;
    return cluster_at(v, v->where[number / per]) + (uint64_t)(number % per) * ROW;
}

static int is_cluster(const struct volume *v, uint32_t n) { return n >= 2 && n < v->clusters + 2; }

uint32_t next_cluster(const struct volume *v, const uint8_t *table, uint32_t n)
{
    if (v->bits == 32) return (uint32_t)little(table + n * 4, 4) & 0xfffffff;
    if (v->bits == 16) return (uint32_t)little(table + n * 2, 2);
    uint32_t pair = (uint32_t)little(table + n * 3 / 2, 2);
    return n & 1 ? pair >> 4 : pair & 0xfff;
}

static const char *read_boot_sector(struct volume *v, uint64_t size)
{
    uint8_t s[SECTOR];
    if (load(v->disk, s, sizeof s, v->start)) return "its boot partition cannot be read";
    uint32_t reserved = (uint32_t)little(s + 14, 2), rows = (uint32_t)little(s + 17, 2);
    uint64_t sectors = little(s + 19, 2) ? little(s + 19, 2) : little(s + 32, 4);
    uint64_t table = little(s + 22, 2) ? little(s + 22, 2) : little(s + 36, 4);
    v->cluster = s[13] * SECTOR;
    v->tables = s[16];
    if (little(s + 510, 2) != 0xaa55 || little(s + 11, 2) != SECTOR || !s[13] || (s[13] & (s[13] - 1)) || !reserved ||
        v->tables < 1 || v->tables > 2 || !table || table > MOST_CLUSTERS / 128 + 1 || sectors * SECTOR > size)
        return "its boot partition holds no FAT that is known here";
    uint64_t root = reserved + v->tables * table, data = root + (rows * ROW + SECTOR - 1) / SECTOR;
    uint64_t clusters = sectors > data ? (sectors - data) / s[13] : 0;
    v->bits = clusters < 4085 ? 12 : clusters < 65525 ? 16 : 32;
    if (!clusters || clusters > MOST_CLUSTERS || table * SECTOR * 8 < (clusters + 2) * (uint64_t)v->bits ||
        (v->bits == 32) != !rows || (v->bits == 32) != !little(s + 22, 2))
        return DAMAGED;
    v->clusters = (uint32_t)clusters;
    v->fat = v->start + (uint64_t)reserved * SECTOR;
    v->fat_size = (uint32_t)table * SECTOR;
    v->root = v->start + root * SECTOR;
    v->root_size = rows * ROW;
    v->data = v->start + data * SECTOR;
    v->root_cluster = v->bits == 32 ? (uint32_t)little(s + 44, 4) : 0;
    v->info = v->bits == 32 && little(s + 48, 2) < reserved ? (uint32_t)little(s + 48, 2) : 0;
    return NULL;
}

/* The rows of a folder, 0 being the root; NULL where it has none, or no end. `where` gets its clusters. */
static uint8_t *read_folder(const struct volume *v, uint32_t first, uint32_t *rows, uint32_t **where)
{
    uint32_t most = LARGEST_FOLDER / v->cluster, n = 0, size = v->root_size;
    uint8_t *all = NULL;
    *where = NULL;
    if (!first && v->bits != 32) {
        all = malloc(size);
        if (all && load(v->disk, all, size, v->root)) size = 0;
    } else {
        *where = calloc(most + 1, sizeof **where);
        for (uint32_t c = first ? first : v->root_cluster; is_cluster(v, c) && n <= most;
             c = next_cluster(v, v->table, c))
            (*where)[n++] = c;
        size = n > most ? 0 : n * v->cluster;
        all = malloc(size ? size : 1);
        for (uint32_t i = 0; i < n && size; i++)
            if (load(v->disk, all + (size_t)i * v->cluster, v->cluster, cluster_at(v, (*where)[i]))) size = 0;
    }
    *rows = size / ROW;
    if (!size) free(all), free(*where), all = NULL, *where = NULL;
    return all;
}

/* Mark what a chain reaches, and count what nobody has reached before. Two files may share clusters: whoever renames
   one may be interrupted between two names. Each cluster is looked at once, so that no chain costs more than all. */
static uint32_t mark(struct volume *v, uint32_t first)
{
    uint32_t n = 0;
    for (uint32_t c = first; is_cluster(v, c) && !v->used[c]; c = next_cluster(v, v->table, c), n++) v->used[c] = 1;
    return n;
}

static uint32_t first_of(const uint8_t *row) { return (uint32_t)(little(row + 20, 2) << 16 | little(row + 26, 2)); }

static int is_short(const uint8_t *row) { return *row != GONE && (row[11] & 0x3f) != LONG && !(row[11] & LABEL); }

static const char *mark_folder(struct volume *v, uint32_t first, int depth, uint32_t *left)
{
    uint32_t rows, *where;
    uint8_t *all = depth ? read_folder(v, first, &rows, &where) : NULL;
    const char *wrong = all ? NULL : DAMAGED;
    for (uint32_t i = 0; !wrong && i < rows && all[i * ROW]; i++) {
        const uint8_t *row = all + (size_t)i * ROW;
        if (!is_short(row) || *row == '.') continue;
        uint32_t reached = mark(v, first_of(row));
        if (!(*left)--) wrong = DAMAGED;
        else if (row[11] & FOLDER) wrong = reached ? mark_folder(v, first_of(row), depth - 1, left) : DAMAGED;
    }
    if (all) free(all), free(where);
    return wrong;
}

/* Find out which clusters are in use. What is wrong with the volume, or NULL; close_volume() in any case. */
const char *open_volume(struct volume *v, int disk, struct extent extent)
{
    uint32_t left = 4096; /* files and folders */
    memset(v, 0, sizeof *v);
    v->disk = disk;
    v->start = extent.start * SECTOR;
    v->sectors = extent.sectors;
    const char *wrong = read_boot_sector(v, extent.sectors * SECTOR);
    if (wrong) return wrong;
    v->table = malloc(v->fat_size + 4);
    v->used = calloc(v->clusters + 2, 1);
    if (!v->table || !v->used || load(disk, v->table, v->fat_size, v->fat)) return "its boot partition cannot be read";
    mark(v, v->root_cluster);
    return mark_folder(v, 0, DEEPEST, &left);
}

void close_volume(struct volume *v)
{
    free(v->table), free(v->used), free(v->folder), free(v->where);
    v->table = v->used = v->folder = NULL, v->where = NULL;
}

/* ---- names ---- */

const uint8_t LETTERS[PER_ROW] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};

uint8_t sum_of(const uint8_t *alias)
{
    uint8_t sum = 0;
    for (int i = 0; i < 11; i++) sum = (uint8_t)((sum << 7 | sum >> 1) + alias[i]);
    return sum;
}

/* The part of a long name that a row has; a letter that is none of ASCII becomes '?'. */
static void put_letters(const uint8_t *row, char *to)
{
    for (int i = 0; i < PER_ROW; i++) {
        uint32_t letter = (uint32_t)little(row + LETTERS[i], 2);
        to[i] = letter == 0xffff ? 0 : letter > 0x7e || (letter && letter < 0x20) ? '?' : (char)letter;
    }
}

/* The long name before a short row, where it is whole, and how many rows they are together; else the short name. */
static uint32_t name_of(const uint8_t *all, uint32_t at, char name[LONGEST_NAME + 1])
{
    const uint8_t *alias = all + (size_t)at * ROW;
    char text[20 * PER_ROW + 1] = "";
    for (uint32_t n = 1; n <= at && n <= 20; n++) {
        const uint8_t *row = alias - n * ROW;
        if ((row[11] & 0x3f) != LONG || (row[0] & ~LAST) != (int)n || row[13] != sum_of(alias)) break;
        put_letters(row, text + (n - 1) * PER_ROW);
        if (!(row[0] & LAST)) continue;
        snprintf(name, LONGEST_NAME + 1, "%s", text);
        return n + 1;
    }
    int n = 0;
    for (int i = 0; i < 11; i++) {
        if (i == 8 && alias[8] != ' ') name[n++] = '.';
        if (alias[i] != ' ') name[n++] = (char)alias[i];
    }
    name[n] = 0;
    return 1;
}

/* The next file or folder from `*at` on; 0 at the end. */
static int next_file(const uint8_t *all, uint32_t rows, uint32_t *at, struct file *file)
{
    for (; *at < rows && all[*at * ROW]; ++*at) {
        const uint8_t *row = all + (size_t)*at * ROW;
        if (!is_short(row) || *row == '.') continue;
        file->entries = name_of(all, *at, file->name);
        file->at = *at + 1 - file->entries;
        file->first = first_of(row);
        file->size = (uint32_t)little(row + 28, 4);
        return ++*at, row[11] & FOLDER ? 2 : 1;
    }
    return 0;
}

/* Open a folder, "EFI/Linux" of the root. */
const char *open_folder(struct volume *v, const char *path)
{
    char copy[LONGEST_NAME], *rest = copy;
    struct file file = {.first = 0};
    snprintf(copy, sizeof copy, "%s", path);
    for (char *part; (part = strsep(&rest, "/"));) {
        uint32_t rows, at = 0, *where;
        uint8_t *all = read_folder(v, file.first, &rows, &where);
        if (!all) return DAMAGED;
        int kind;
        while ((kind = next_file(all, rows, &at, &file)) && (kind != 2 || strcasecmp(file.name, part))) {}
        free(all), free(where);
        if (!kind || !is_cluster(v, file.first)) return "its boot partition has no EFI/Linux";
    }
    v->folder = read_folder(v, file.first, &v->entries, &v->where);
    return v->folder ? NULL : DAMAGED;
}

/* The files of the folder, no folders; how many there are. */
int list_files(const struct volume *v, struct file *files, int most)
{
    int n = 0, kind;
    for (uint32_t at = 0; n < most && (kind = next_file(v->folder, v->entries, &at, files + n));) n += kind == 1;
    return n;
}
