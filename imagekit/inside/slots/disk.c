/* Slots and UKIs of a disk, and the image that runs.

   A disk of ours has partitions root-a, root-a-verity, root-b and root-b-verity, or none of them where the root is in
   the UKI; and an EFI system partition, in whose EFI/Linux the UKIs are: NAME_VERSION.efi, and while an image has not
   proven itself NAME_VERSION+LEFT-DONE.efi ("Automatic Boot Assessment" of systemd). Which slot runs is told by its
   hashes: the first one whose uppermost block has the root hash that the kernel was started with, as the initrd chose
   it. */

#include "slots.h"
#include <ctype.h>
#include <dirent.h>
#include <sys/file.h>

static const uint8_t ESP[16] = {0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, /* UEFI 2.10, section 5.3.3 */
                                0xba, 0x4b, 0,    0xa0, 0xc9, 0x3e, 0xc9, 0x3b};
static const char *const PARTS[2][2] = {{"root-a", "root-a-verity"}, {"root-b", "root-b-verity"}};

/* ---- settings ---- */

static int bits_of(char c) /* of a letter of base64 (RFC 4648, section 4) */
{
    static const char ALL[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = c ? strchr(ALL, c) : NULL;
    return found ? (int)(found - ALL) : -1;
}

/* A line of a minisign .pub that is a key: base64 of "Ed", number and 32 bytes. */
static int read_key(const char *line, uint8_t key[40])
{
    uint8_t raw[42];
    if (strlen(line) != 56) return 0;
    for (int i = 0; i < 14; i++, line += 4) {
        uint32_t bits = 0;
        for (int k = 0; k < 4; k++) {
            if (bits_of(line[k]) < 0) return 0;
            bits = bits << 6 | (uint32_t)bits_of(line[k]);
        }
        raw[i * 3] = (uint8_t)(bits >> 16), raw[i * 3 + 1] = (uint8_t)(bits >> 8), raw[i * 3 + 2] = (uint8_t)bits;
    }
    memcpy(key, raw + 2, 40);
    return !memcmp(raw, "Ed", 2);
}

static FILE *open_in(const char *folder, const char *name)
{
    char path[LONGEST];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return fopen(path, "re");
}

/* imagekit.verity=SALT:BLOCKS:ROOTHASH:REACTION, of the kernel's arguments. */
static void read_arguments(struct settings *s, const char *path)
{
    static char line[8192];
    FILE *file = fopen(path, "re");
    size_t n = file ? fread(line, 1, sizeof line - 1, file) : 0;
    line[n] = 0;
    if (file) fclose(file);
    char *rest = line;
    for (char *word; (word = strsep(&rest, " \n"));)
        if (!strncmp(word, "imagekit.verity=", 16) &&
            sscanf(word + 16, "%64[0-9a-f]:%*[0-9]:%64[0-9a-f]", s->salt, s->root_hash) != 2)
            *s->salt = *s->root_hash = 0;
}

/* What the running image says of itself: FOLDER/slots and FOLDER/update.pub; 0 when that is nothing. */
int read_settings(struct settings *s, const char *folder, const char *arguments)
{
    char line[LONGEST];
    memset(s, 0, sizeof *s);
    FILE *file = open_in(folder, "slots");
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "name %100s", s->name);
        sscanf(line, "version %100s", s->version);
        sscanf(line, "architecture %32s", s->arch);
        sscanf(line, "generation %lu", &s->generation);
    }
    if (file) fclose(file);
    file = open_in(folder, "update.pub");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (s->keys < MOST_KEYS && read_key(line, s->key[s->keys])) s->keys++;
    }
    if (file) fclose(file);
    read_arguments(s, arguments);
    return *s->name && *s->version && *s->arch;
}

/* ---- slots ---- */

static int is_named(struct table *t, int number, const char *name)
{
    const uint8_t *letters = t->entries + (size_t)(number - 1) * 128 + 56;
    for (int i = 0; i < 36; i++, name++) {
        if (little(letters + i * 2, 2) != (uint8_t)*name) return 0;
        if (!*name) return 1;
    }
    return !*name;
}

static struct extent named(struct table *t, const char *name)
{
    for (int number = 1; number <= MOST_PARTITIONS; number++)
        if (is_named(t, number, name)) return partition(t, number);
    return (struct extent){0, 0};
}

static struct extent find_esp(struct table *t)
{
    for (int number = 1; number <= MOST_PARTITIONS; number++)
        if (!memcmp(t->entries + (size_t)(number - 1) * 128, ESP, sizeof ESP)) return partition(t, number);
    return (struct extent){0, 0};
}

/* Whether the uppermost block of hashes, the first after the superblock, is that of a root hash. */
int top_fits(int disk, struct extent hashes, const char *root_hash, const char *salt)
{
    uint8_t block[BLOCK], raw[32];
    char hex[65];
    struct sha256 sum;
    size_t n = strlen(salt) / 2;
    if (hashes.sectors < 2 * BLOCK / SECTOR || load(disk, block, sizeof block, hashes.start * SECTOR + BLOCK)) return 0;
    for (size_t i = 0; i < n; i++) sscanf(salt + 2 * i, "%2hhx", raw + i);
    sha256_begin(&sum);
    sha256_add(&sum, raw, n);
    sha256_add(&sum, block, sizeof block);
    sha256_end_hex(&sum, hex);
    return !strcmp(hex, root_hash);
}

/* Which slot the running root is in, and so which one is not. */
static int choose_slot(struct disk *d, const struct settings *s)
{
    if (!*s->root_hash) return d->slot = 'a', 1;
    for (int i = 0; i < 2; i++) {
        if (!top_fits(d->table.disk, named(&d->table, PARTS[i][1]), s->root_hash, s->salt)) continue;
        d->data = named(&d->table, PARTS[!i][0]);
        d->hashes = named(&d->table, PARTS[!i][1]);
        d->slot = i ? 'a' : 'b';
        return d->data.sectors && d->hashes.sectors;
    }
    return 0;
}

/* ---- UKIs ---- */

/* What stands behind the version: ".efi", "+LEFT.efi" or "+LEFT-DONE.efi". */
static int read_tries(const char *text, struct uki *uki)
{
    int n = 0;
    uki->left = -1, uki->done = 0;
    if (*text == '+' && isdigit((uint8_t)text[1])) {
        if (sscanf(text, "+%4d%n", &uki->left, &n) != 1) return 0;
        text += n;
        if (*text == '-' && (!isdigit((uint8_t)text[1]) || sscanf(text, "-%4d%n", &uki->done, &n) != 1)) return 0;
        text += *text == '-' ? n : 0;
    }
    return !strcasecmp(text, ".efi");
}

static int read_name(const char *name, const char *image, struct uki *uki)
{
    size_t length = strlen(image);
    if (strncasecmp(name, image, length) || name[length] != '_') return 0;
    const char *version = name + length + 1;
    size_t n = strspn(version, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.~^-");
    if (version[n] != '+') n = n > 4 ? n - 4 : 0; /* ".efi" is made of the same letters */
    if (!n || n >= sizeof uki->version) return 0;
    memcpy(uki->version, version, n);
    uki->version[n] = 0;
    return read_tries(version + n, uki);
}

static int is_efi(const char *name)
{
    size_t n = strlen(name);
    return n > 4 && !strcasecmp(name + n - 4, ".efi");
}

/* All that systemd-boot would start from EFI/Linux; those of another image have no version. */
const char *list_ukis(struct disk *d, const struct settings *s)
{
    static struct file files[MOST_FILES];
    const char *wrong = open_folder(&d->esp, "EFI/Linux");
    if (wrong) return wrong;
    int n = list_files(&d->esp, files, MOST_FILES);
    for (int i = 0; i < n; i++) {
        if (!is_efi(files[i].name)) continue;
        struct uki *uki = &d->uki[d->ukis];
        uki->file = files[i];
        if (!read_name(files[i].name, s->name, uki)) *uki->version = 0, uki->left = -1;
        d->is_running[d->ukis++] = *uki->version && !strcmp(uki->version, s->version);
    }
    return NULL;
}

static int has_running(const struct disk *d)
{
    for (int i = 0; i < d->ukis; i++)
        if (d->is_running[i]) return 1;
    return 0;
}

/* ---- disks ---- */

static const char *try_disk(struct disk *d, const struct settings *s, const char *path)
{
    memset(d, 0, sizeof *d);
    snprintf(d->path, sizeof d->path, "%s", path);
    const char *wrong = read_partitions(&d->table, path, O_RDWR);
    if (wrong) return wrong;
    if (!d->table.is_gpt) return "it has no GPT";
    if (!choose_slot(d, s)) return "it does not hold the root that runs, or has no second slot";
    if (!find_esp(&d->table).sectors) return "it has no EFI system partition";
    if (flock(d->table.disk, LOCK_EX | LOCK_NB))
        return "another update is under way, or what runs has not proven itself yet";
    if ((wrong = open_volume(&d->esp, d->table.disk, find_esp(&d->table))) || (wrong = list_ukis(d, s))) return wrong;
    return has_running(d) ? NULL : "it has no UKI of the running image";
}

void close_disk(struct disk *d)
{
    close_volume(&d->esp);
    if (d->table.disk > 0) close(d->table.disk);
    d->table.disk = -1;
}

static int is_whole_disk(const struct dirent *entry)
{
    const char *name = entry->d_name;
    return *name != '.' && strncmp(name, "loop", 4) && strncmp(name, "ram", 3) && strncmp(name, "dm-", 3) &&
           strncmp(name, "zram", 4);
}

/* Whether a disk has the partition that a mapped device lies on; of all disks, where there is no such device. A copy of
   our disk, as on a stick, has the same hashes. */
static int is_mapped(const char *disk)
{
    char path[LONGEST / 2];
    int mapped = 0, found = 0;
    for (int number = 0; number < 16; number++) {
        snprintf(path, sizeof path, "/sys/block/dm-%d/slaves", number);
        DIR *all = opendir(path);
        for (struct dirent *entry; all && (entry = readdir(all));) {
            if (*entry->d_name == '.') continue;
            snprintf(path, sizeof path, "/sys/block/%.60s/%.60s", disk, entry->d_name);
            mapped++, found += !access(path, F_OK);
        }
        if (all) closedir(all);
    }
    return found || !mapped;
}

/* Open the disk that the running image was started from, or this one; what is wrong, or NULL. */
const char *find_disk(struct disk *d, const struct settings *s, const char *path)
{
    struct dirent **entries;
    char device[LONGEST / 4];
    const char *wrong = "there is no disk", *told = NULL;
    if (path) return try_disk(d, s, path);
    int n = scandir("/sys/block", &entries, is_whole_disk, alphasort);
    for (int i = 0; i < n; i++) {
        if (!is_mapped(entries[i]->d_name)) continue;
        snprintf(device, sizeof device, "/dev/%.200s", entries[i]->d_name);
        if (!(wrong = try_disk(d, s, device))) return NULL;
        if (d->slot) told = wrong; /* the right disk, and something else is wrong with it */
        close_disk(d);
    }
    return told ? told : wrong;
}
