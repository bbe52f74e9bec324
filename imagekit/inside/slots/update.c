/* imagekit-update: write an update into the slot that does not run, so that the next start tries it.

   1. Head, manifest and table are verified, and that it is newer, for this image and machine, and fits.
   2. Every UKI but the one that runs loses its name: the other slot is about to change under it.
   3. Root and hashes go into the other slot, the UKI into free clusters, each chunk verified before; then all is on
      the disk, is read back from there, and compared with the same hashes.
   4. The UKI gets its name, with three tries: one write.
   Wherever the power is cut, the image that runs is started again, and is complete. */

#include "slots.h"
#include <sys/stat.h>

enum { TRIES = 3 };

static const char *const SLOTS[] = {"", " in slot a", " in slot b"};

static uint8_t bytes[CHUNK];
static struct disk disk;
static struct update update;
static struct settings settings;

static uint32_t chunks_of(uint64_t size) { return (uint32_t)((size + CHUNK - 1) / CHUNK); }

static uint32_t size_of(uint64_t size, uint32_t number)
{
    uint64_t left = size - (uint64_t)number * CHUNK;
    return left < CHUNK ? (uint32_t)left : CHUNK;
}

/* ---- may it be? ---- */

static const char *check_update(void)
{
    if (strcmp(update.name, settings.name)) return "the update is of another image";
    if (strcmp(update.arch, settings.arch)) return "the update is for another architecture";
    if (compare_versions(update.version, settings.version) <= 0) return "the update is not newer than what runs";
    if (update.generation < settings.generation) return "the update is of a lower generation than what runs";
    return !*update.root_hash == !*settings.root_hash ? NULL : "the update has its root elsewhere than what runs";
}

/* What runs must be what is started again when the update fails. */
static const char *check_running(void)
{
    for (int i = 0; i < disk.ukis; i++)
        if (disk.is_running[i] && disk.uki[i].left < 0) return NULL;
    return "what runs has not proven itself yet";
}

static const char *check_room(void)
{
    if (update.root > disk.data.sectors * SECTOR) return "the update's root does not fit into the other slot";
    return update.hashes > disk.hashes.sectors * SECTOR ? "the update's hashes do not fit into the other slot" : NULL;
}

/* ---- the other slot ---- */

static const char *remove_others(void)
{
    const char *wrong = NULL;
    for (int i = 0; !wrong && i < disk.ukis; i++)
        if (!disk.is_running[i]) wrong = remove_file(&disk.esp, &disk.uki[i].file);
    return wrong;
}

/* Whose clusters are free now is found out anew. */
static const char *open_esp_again(void)
{
    struct volume *esp = &disk.esp;
    struct extent whole = {esp->start / SECTOR, esp->sectors};
    close_volume(esp);
    const char *wrong = open_volume(esp, disk.table.disk, whole);
    return wrong ? wrong : open_folder(esp, "EFI/Linux");
}

static const char *write_part(struct extent where, uint64_t size, uint32_t first)
{
    const char *wrong = NULL;
    for (uint32_t i = 0; !wrong && i < chunks_of(size); i++) {
        uint32_t n = size_of(size, i);
        if (!(wrong = next_chunk(&update, bytes, n, first + i)))
            wrong = store(disk.table.disk, bytes, n, where.start * SECTOR + (uint64_t)i * CHUNK);
    }
    return wrong;
}

static const char *write_uki(const struct chain *chain, uint32_t first)
{
    const char *wrong = NULL;
    for (uint32_t i = 0; !wrong && i < chunks_of(update.uki); i++) {
        uint32_t n = size_of(update.uki, i);
        if (!(wrong = next_chunk(&update, bytes, n, first + i)))
            wrong = write_piece(&disk.esp, chain, bytes, n, i * CHUNK);
    }
    return wrong;
}

static int is_part(struct extent where, uint64_t size, uint32_t first)
{
    for (uint32_t i = 0; i < chunks_of(size); i++) {
        uint32_t n = size_of(size, i);
        if (load(disk.table.disk, bytes, n, where.start * SECTOR + (uint64_t)i * CHUNK) ||
            !is_chunk(&update, bytes, n, first + i))
            return 0;
    }
    return 1;
}

static int is_uki(const struct chain *chain, uint32_t first)
{
    for (uint32_t i = 0; i < chunks_of(update.uki); i++) {
        uint32_t n = size_of(update.uki, i);
        if (read_piece(&disk.esp, chain, bytes, n, i * CHUNK) || !is_chunk(&update, bytes, n, first + i)) return 0;
    }
    return 1;
}

/* Write all three, and read them back. */
static const char *write_slot(const struct chain *chain)
{
    uint32_t hashes = chunks_of(update.root), uki = hashes + chunks_of(update.hashes);
    const char *wrong = write_part(disk.data, update.root, 0);
    if (!wrong) wrong = write_part(disk.hashes, update.hashes, hashes);
    if (!wrong) wrong = write_uki(chain, uki);
    if (!wrong && !at_end(&update)) wrong = "something stands behind the update";
    if (!wrong) wrong = settle(disk.table.disk);
    if (wrong) return wrong;
    if (!is_part(disk.data, update.root, 0) || !is_part(disk.hashes, update.hashes, hashes) || !is_uki(chain, uki))
        return "the disk does not hold what was written to it";
    return !update.root || top_fits(disk.table.disk, disk.hashes, update.root_hash, update.salt)
               ? NULL
               : "the update's hashes are not those of its root hash";
}

static const char *run(const char *source, const char *path, const char *folder, const char *arguments)
{
    struct chain chain;
    char name[LONGEST_NAME + 1];
    int file = strcmp(source, "-") ? open(source, O_RDONLY | O_CLOEXEC) : 0;
    if (file < 0) return strerror(errno);
    if (!read_settings(&settings, folder, arguments)) return "this image has no slots";
    const char *wrong = open_update(&update, file, &settings);
    if (wrong || (wrong = check_update()) || (wrong = find_disk(&disk, &settings, path)) || (wrong = check_running()) ||
        (wrong = check_room()))
        return wrong;
    snprintf(name, sizeof name, "%s_%s+%d.efi", update.name, update.version, TRIES);
    if ((wrong = remove_others()) || (wrong = open_esp_again()) ||
        (wrong = begin_file(&disk.esp, &chain, (uint32_t)update.uki)) || (wrong = write_slot(&chain)))
        return wrong;
    return name_file(&disk.esp, &chain, name);
}

static int which(void) { return !update.root ? 0 : disk.slot == 'a' ? 1 : 2; }

/* imagekit-update FILE|- [DISK FOLDER ARGUMENTS [WRITES]]: of another disk than that which runs; FOLDER has what the
   image on it says of itself, ARGUMENTS the kernel's. Tests cut the power when WRITES are done. */
int install(char **words)
{
    int is_other = words[1] && words[2] && words[3];
    if (!*words || (words[1] && !is_other)) {
        fprintf(stderr, "usage: imagekit-update FILE, or - for stdin\n");
        return 2;
    }
    if (is_other && words[4]) writes_left = atol(words[4]);
    const char *wrong = is_other ? run(*words, words[1], words[2], words[3])
                                 : run(*words, NULL, "/etc/imagekit", "/proc/cmdline");
    if (wrong) fprintf(stderr, "imagekit-update: %s\n", wrong);
    else printf("%s %s is on %s%s; the next start tries it\n", update.name, update.version, disk.path, SLOTS[which()]);
    return !!wrong;
}
