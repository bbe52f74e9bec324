/* The files of one folder of a FAT volume, changed so that a power cut leaves the files that were there before.

   A new file comes into being in this order, each on the disk before the next: its bytes, into clusters that nobody
   reaches; the table, in which those of all other files stay as they are; its name. A name takes rows of one sector,
   and so comes by one write. A renamed file keeps its short row; of its long name, which may lie in two sectors, the
   short name is left when one of them is missing. A removed file loses its name, and its clusters when the next table
   is written. */

#include "slots.h"

enum { ARCHIVE = 0x20, PER_SECTOR = SECTOR / ROW };

/* Write rows of the folder, sector by sector. */
static const char *put_rows(struct volume *v, uint32_t at, uint32_t count)
{
    const char *wrong = NULL;
    for (uint32_t end = at + count, next; !wrong && at < end; at = next) {
        next = at - at % PER_SECTOR + PER_SECTOR;
        if (next > end) next = end;
        if (!(wrong = store(v->disk, v->folder + (size_t)at * ROW, (size_t)(next - at) * ROW, entry_at(v, at))))
            wrong = settle(v->disk);
    }
    return wrong;
}

const char *remove_file(struct volume *v, const struct file *file)
{
    uint32_t alias = file->at + file->entries - 1;
    for (uint32_t i = file->at; i <= alias; i++) v->folder[i * ROW] = GONE;
    const char *wrong = put_rows(v, alias, 1); /* without it what stands before it counts no more */
    return wrong || alias == file->at ? wrong : put_rows(v, file->at, file->entries - 1);
}

/* ---- names ---- */

static uint32_t rows_of(const char *name) { return (uint32_t)(strlen(name) + PER_ROW - 1) / PER_ROW; }

/* The rows of a long name, the last part first, as they stand before a short row. */
static void put_name(uint8_t *rows, const char *name, uint8_t sum)
{
    size_t length = strlen(name);
    uint32_t count = rows_of(name);
    for (uint32_t n = count; n; n--, rows += ROW) {
        memset(rows, 0, ROW);
        rows[0] = (uint8_t)(n | (n == count ? LAST : 0));
        rows[11] = LONG;
        rows[13] = sum;
        for (size_t i = 0, at = (n - 1) * PER_ROW; i < PER_ROW; i++, at++)
            put_little(rows + LETTERS[i], 2, at < length ? (uint8_t)name[at] : at == length ? 0 : 0xffff);
    }
}

/* Another name, which may not need more rows than it has. */
const char *rename_file(struct volume *v, const struct file *file, const char *name)
{
    uint32_t need = rows_of(name), spare = file->entries - 1 - need;
    if (file->entries - 1 < need) return "it has no room for its new name";
    for (uint32_t i = 0; i < spare; i++) v->folder[(file->at + i) * ROW] = GONE;
    uint32_t alias = file->at + file->entries - 1;
    put_name(v->folder + (size_t)(file->at + spare) * ROW, name, sum_of(v->folder + (size_t)alias * ROW));
    return put_rows(v, file->at, file->entries - 1);
}

/* A short name that nobody has: SLOT0000.EFI and so on. */
static void put_alias(const struct volume *v, uint8_t alias[11])
{
    char text[12];
    for (int n = 0, is_taken = 1; is_taken; n++) {
        snprintf(text, sizeof text, "SLOT%04dEFI", n % 10000);
        is_taken = 0;
        for (uint32_t i = 0; i < v->entries; i++) is_taken |= !memcmp(v->folder + (size_t)i * ROW, text, 11);
    }
    memcpy(alias, text, 11);
}

/* A folder ends with the first row that begins with a zero, and what stands behind that counts for nothing. */
static uint32_t end_of(const struct volume *v)
{
    uint32_t end = 0;
    while (end < v->entries && v->folder[end * ROW]) end++;
    return end;
}

/* So many free rows in one sector; -1 where there are none. */
static int64_t free_rows(const struct volume *v, uint32_t count)
{
    uint32_t end = end_of(v), run = 0;
    for (uint32_t i = 0; i < v->entries; i++) {
        if (i % PER_SECTOR == 0) run = 0;
        run = i >= end || v->folder[i * ROW] == GONE ? run + 1 : 0;
        if (run == count) return i + 1 - count;
    }
    return -1;
}

/* ---- the table ---- */

static void put_next(const struct volume *v, uint8_t *table, uint32_t n, uint32_t next)
{
    if (v->bits == 32) put_little(table + n * 4, 4, (little(table + n * 4, 4) & 0xf0000000) | next);
    else if (v->bits == 16) put_little(table + n * 2, 2, next & 0xffff);
    else {
        uint32_t pair = (uint32_t)little(table + n * 3 / 2, 2);
        put_little(table + n * 3 / 2, 2, n & 1 ? (pair & 0xf) | (next & 0xfff) << 4 : (pair & 0xf000) | (next & 0xfff));
    }
}

static uint32_t bad(const struct volume *v) { return v->bits == 32 ? 0xffffff7 : v->bits == 16 ? 0xfff7 : 0xff7; }

static const char *put_table(struct volume *v, const uint8_t *table)
{
    const char *wrong = NULL;
    for (int copy = 0; copy < v->tables; copy++)
        for (uint32_t at = 0; !wrong && at < v->fat_size; at += SECTOR)
            if (memcmp(table + at, v->table + at, SECTOR))
                wrong = store(v->disk, table + at, SECTOR, v->fat + (uint64_t)copy * v->fat_size + at);
    if (!wrong) memcpy(v->table, table, v->fat_size);
    return wrong ? wrong : settle(v->disk);
}

/* What FSInfo says of free clusters is a hint; now it says that nobody knows. */
static const char *forget_free(struct volume *v)
{
    uint8_t s[SECTOR];
    uint64_t at = v->start + (uint64_t)v->info * SECTOR;
    if (!v->info || load(v->disk, s, sizeof s, at) || little(s, 4) != 0x41615252 || little(s + 488, 4) == UINT32_MAX)
        return NULL;
    memset(s + 488, 0xff, 8);
    return store(v->disk, s, sizeof s, at);
}

/* The table as it will be: chains of files as they are, this one, and all else free. */
static const char *put_chain(struct volume *v, const struct chain *chain)
{
    uint8_t *table = malloc(v->fat_size + 4);
    if (!table) return strerror(ENOMEM);
    memcpy(table, v->table, v->fat_size);
    for (uint32_t n = 2; n < v->clusters + 2; n++)
        if (!v->used[n] && next_cluster(v, table, n) != bad(v)) put_next(v, table, n, 0);
    for (uint32_t i = 0; i < chain->count; i++)
        put_next(v, table, chain->clusters[i], i + 1 < chain->count ? chain->clusters[i + 1] : 0xfffffff);
    const char *wrong = forget_free(v);
    if (!wrong) wrong = put_table(v, table);
    free(table);
    return wrong;
}

/* ---- a new file ---- */

/* Take clusters for so many bytes; nothing of it is on the disk yet. */
const char *begin_file(struct volume *v, struct chain *chain, uint32_t size)
{
    uint32_t count = (uint32_t)(((uint64_t)size + v->cluster - 1) / v->cluster);
    *chain = (struct chain){calloc(count ? count : 1, sizeof *chain->clusters), 0, size};
    for (uint32_t n = 2; n < v->clusters + 2 && chain->clusters && chain->count < count; n++)
        if (!v->used[n] && next_cluster(v, v->table, n) != bad(v)) chain->clusters[chain->count++] = n;
    return chain->count == count ? NULL : "the boot partition has no room for it";
}

/* Up to so many bytes of a file that lie side by side, from `at` on. */
static uint32_t run_of(const struct volume *v, const struct chain *chain, uint32_t at, uint32_t most, uint64_t *place)
{
    uint32_t i = at / v->cluster, size = v->cluster - at % v->cluster;
    *place = cluster_at(v, chain->clusters[i]) + at % v->cluster;
    for (; size < most && chain->clusters[i + 1] == chain->clusters[i] + 1; i++) size += v->cluster;
    return size < most ? size : most;
}

const char *write_piece(struct volume *v, const struct chain *chain, const uint8_t *bytes, uint32_t size, uint32_t at)
{
    const char *wrong = NULL;
    uint64_t place;
    for (uint32_t n; size && !wrong; bytes += n, at += n, size -= n) {
        n = run_of(v, chain, at, size, &place);
        wrong = store(v->disk, bytes, n, place);
    }
    return wrong;
}

int read_piece(const struct volume *v, const struct chain *chain, uint8_t *bytes, uint32_t size, uint32_t at)
{
    uint64_t place;
    for (uint32_t n; size; bytes += n, at += n, size -= n) {
        n = run_of(v, chain, at, size, &place);
        if (load(v->disk, bytes, n, place)) return -1;
    }
    return 0;
}

/* Let the end of the folder be where the new rows will begin: no garbage behind it comes to life, and rows between are
   as good as removed ones. */
static const char *move_end(struct volume *v, uint32_t at)
{
    uint32_t end = end_of(v), dirty = end;
    const char *wrong = NULL;
    for (uint32_t i = end; i < v->entries; i++)
        for (int k = 0; k < ROW; k++)
            if (v->folder[i * ROW + k]) v->folder[i * ROW + k] = 0, dirty = i + 1;
    if (dirty > end) wrong = put_rows(v, end, dirty - end);
    for (uint32_t i = end; i < at; i++) v->folder[i * ROW] = GONE;
    return wrong || end >= at ? wrong : put_rows(v, end, at - end);
}

static void put_short(const struct volume *v, const struct chain *chain, uint8_t row[ROW])
{
    enum { DATE = 1 << 5 | 1 }; /* 1980-01-01, the first day that FAT knows */
    memset(row, 0, ROW);
    put_alias(v, row);
    row[11] = ARCHIVE;
    put_little(row + 16, 2, DATE), put_little(row + 18, 2, DATE), put_little(row + 24, 2, DATE);
    put_little(row + 20, 2, chain->clusters[0] >> 16), put_little(row + 26, 2, chain->clusters[0] & 0xffff);
    put_little(row + 28, 4, chain->size);
}

/* Give it its name, once all its bytes are on the disk. */
const char *name_file(struct volume *v, const struct chain *chain, const char *name)
{
    uint8_t row[ROW];
    uint32_t count = rows_of(name) + 1;
    int64_t at = count > PER_SECTOR ? -1 : free_rows(v, count);
    if (at < 0) return "the folder EFI/Linux of the boot partition has no room for another name";
    const char *wrong = put_chain(v, chain);
    if (!wrong) wrong = move_end(v, (uint32_t)at);
    if (wrong) return wrong;
    put_short(v, chain, row);
    put_name(v->folder + (size_t)at * ROW, name, sum_of(row));
    memcpy(v->folder + (size_t)(at + count - 1) * ROW, row, ROW);
    return put_rows(v, (uint32_t)at, count);
}
