/* What the files of the slots program share; slots.c says what it is. */

#include "../boot.h"
#include "../sha256.h"

enum { CUT = 75, BLOCK = 4096, CHUNK = 1 << 20, MOST_KEYS = 8, MOST_FILES = 64, LONGEST_NAME = 255 };

/* ---- store.c: every write to a disk ---- */

extern long writes_left; /* below 0: as many as it takes; the one after the last is a power cut, for tests */

const char *store(int disk, const void *bytes, size_t size, uint64_t at);
const char *settle(int disk); /* all that was written is on the disk, and is read from there */
int load(int disk, void *bytes, size_t size, uint64_t at);
uint64_t little(const uint8_t *p, int bytes);
void put_little(uint8_t *p, int bytes, uint64_t value);

/* ---- fat.c, fatchange.c: the files of one folder of a FAT volume ---- */

enum { ROW = 32, PER_ROW = 13, LONG = 0x0f, LAST = 0x40, GONE = 0xe5 }; /* of a folder */

extern const uint8_t LETTERS[PER_ROW]; /* where a row of a long name has them */

uint8_t sum_of(const uint8_t *alias); /* of a short name: what ties the rows of a long name to it */

struct volume {
    int disk, bits, tables;
    uint64_t start, fat, data, root; /* offsets on the disk in bytes: of the volume, its first table, cluster 2, root */
    uint64_t sectors;                /* of its partition */
    uint32_t fat_size, root_size, cluster, clusters, root_cluster, info; /* bytes; info: sector of FSInfo, or 0 */
    uint8_t *table, *used;    /* the table as it is on the disk; per cluster: whether a file or folder reaches it */
    uint8_t *folder;          /* of the folder that was opened: its entries, */
    uint32_t *where, entries; /* and the clusters that they lie in (none: the root of FAT12 and FAT16) */
};

struct file {
    char name[LONGEST_NAME + 1];
    uint32_t first, size;  /* cluster, bytes */
    uint32_t at, entries;  /* of the folder: the first of so many, of which the last is the short one */
};

struct chain { /* of clusters that nobody uses yet */
    uint32_t *clusters, count, size;
};

const char *open_volume(struct volume *volume, int disk, struct extent extent);
const char *open_folder(struct volume *volume, const char *path);
void close_volume(struct volume *volume);
int list_files(const struct volume *volume, struct file *files, int most);
uint32_t next_cluster(const struct volume *volume, const uint8_t *table, uint32_t cluster);
uint64_t cluster_at(const struct volume *volume, uint32_t cluster);
uint64_t entry_at(const struct volume *volume, uint32_t number);

const char *remove_file(struct volume *volume, const struct file *file);
const char *rename_file(struct volume *volume, const struct file *file, const char *name);
const char *begin_file(struct volume *volume, struct chain *chain, uint32_t size);
const char *write_piece(struct volume *volume, const struct chain *chain, const uint8_t *bytes, uint32_t size,
                        uint32_t at);
int read_piece(const struct volume *volume, const struct chain *chain, uint8_t *bytes, uint32_t size, uint32_t at);
const char *name_file(struct volume *volume, const struct chain *chain, const char *name);

/* ---- version.c ---- */

int compare_versions(const char *a, const char *b);

/* ---- disk.c: slots and UKIs of a disk ---- */

struct settings { /* of the image that runs */
    char name[101], version[101], arch[33], root_hash[65], salt[65]; /* the last two: "" without dm-verity */
    unsigned long generation;
    int keys;
    uint8_t key[MOST_KEYS][40]; /* number, public */
};

struct uki {
    struct file file;
    char version[101];
    int left, done; /* of its tries; left below 0: it needs none any more */
};

struct disk {
    char path[256];
    struct table table;
    struct volume esp;
    struct extent data, hashes; /* of the slot that does not run; no sectors where there is none */
    char slot;                  /* 'a' or 'b': its name */
    int is_running[MOST_FILES], ukis;
    struct uki uki[MOST_FILES];
};

int read_settings(struct settings *settings, const char *folder, const char *arguments);
const char *find_disk(struct disk *disk, const struct settings *settings, const char *path);
const char *list_ukis(struct disk *disk, const struct settings *settings);
void close_disk(struct disk *disk);
int top_fits(int disk, struct extent hashes, const char *root_hash, const char *salt);

/* ---- update.c, updatefile.c ---- */

struct update {
    int file;
    char name[101], version[101], arch[33], root_hash[65], salt[65];
    unsigned long generation;
    uint64_t root, hashes, uki; /* bytes */
    uint32_t chunks;
    const uint8_t *table; /* sha256 of every chunk */
};

const char *open_update(struct update *update, int file, const struct settings *settings);
const char *next_chunk(struct update *update, uint8_t *bytes, uint32_t size, uint32_t number);
int is_chunk(const struct update *update, const uint8_t *bytes, uint32_t size, uint32_t number);
int at_end(const struct update *update);
int install(char **words);

/* ---- watch.c ---- */

int watch(char **words);
int is_blessed(char **words);
int keep(char **words);
