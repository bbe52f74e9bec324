/* The root that the signed command line means, wherever on the disks it lies: dm-verity over it, read-only.

   imagekit.verity=SALT:BLOCKS:ROOTHASH:REACTION says all that the kernel has to be told; nothing is believed of the
   superblock, which no hash covers. The tree of hashes is the one whose topmost block has the root hash: it is looked
   for in every partition for trees of this architecture, and its data lies in the partition of the same name less
   "-verity". So an image finds its root in whichever slot it was written to. */

#include "sealed.h"

enum { BLOCK = 4096, LONGEST_SALT = 256, MOST_BLOCKS = 1 << 30 }; /* bytes, bytes, blocks: 4 TiB */

/* Discoverable Partitions Specification: the root's verity partition, as a GPT has it (UEFI 2.10, appendix A) */
static const uint8_t TYPE[16] = {
#ifdef __aarch64__
    0xce, 0x00, 0x33, 0xdf, 0x9f, 0xd6, 0x92, 0x4c, 0x97, 0x8c, 0x9b, 0xfb, 0x0f, 0x38, 0xd8, 0x20,
#else
    0xed, 0x57, 0x73, 0x2c, 0xd2, 0xeb, 0xd9, 0x46, 0xae, 0xc1, 0x23, 0xd4, 0x37, 0xec, 0x2b, 0xf5,
#endif
};

static const struct {
    const char *name, *option;
} REACTIONS[] = {
    {"restart", " 1 restart_on_corruption"},
    {"panic", " 1 panic_on_corruption"},
    {"error", ""},
};

struct wanted {
    char text[LONGEST]; /* of the argument, taken apart in place */
    const char *salt, *root, *option;
    uint8_t salt_bytes[LONGEST_SALT], root_bytes[DIGEST];
    size_t salt_size;
    unsigned long long blocks;
};

struct found {
    const struct wanted *wanted;
    int tree, data; /* the numbers of the partitions */
    int is_seen;    /* there are trees, whether they fit or not */
    char label[37];
};

static int take_apart(struct wanted *w, const char *text)
{
    char *rest = w->text, *end;
    if (snprintf(w->text, sizeof w->text, "%s", text) >= (int)sizeof w->text) return -1;
    w->salt = strsep(&rest, ":");
    const char *blocks = strsep(&rest, ":");
    w->root = strsep(&rest, ":");
    w->salt_size = strlen(w->salt) / 2;
    if (!rest || w->salt_size > LONGEST_SALT) return -1;
    w->blocks = strtoull(blocks, &end, 10);
    if (*end || w->blocks < 2 || w->blocks > MOST_BLOCKS) return -1;
    for (size_t i = 0; i < sizeof REACTIONS / sizeof *REACTIONS; i++)
        if (!strcmp(rest, REACTIONS[i].name)) w->option = REACTIONS[i].option;
    return from_hex(w->salt, strlen(w->salt), w->salt_bytes, w->salt_size) ||
                   from_hex(w->root, strlen(w->root), w->root_bytes, DIGEST) || !w->option
               ? -1
               : 0;
}

/* Whether the topmost block of the tree in this partition has the root hash. It comes after the superblock. */
static int fits(const struct wanted *w, struct table *t, int number)
{
    static uint8_t block[BLOCK];
    uint8_t digest[DIGEST];
    struct sha256 s;
    struct extent part = partition(t, number);
    if (part.sectors < 2 * BLOCK / SECTOR) return 0;
    if (pread(t->disk, block, BLOCK, (off_t)(part.start * SECTOR + BLOCK)) != BLOCK) return 0;
    sha256_begin(&s);
    sha256_add(&s, w->salt_bytes, w->salt_size);
    sha256_add(&s, block, BLOCK);
    sha256_end(&s, digest);
    return !memcmp(digest, w->root_bytes, DIGEST);
}

/* The partition with the name of the tree's less "-verity", if the data fits into it. */
static int find_data(struct found *found, struct table *t)
{
    char *end = strrchr(found->label, '-');
    if (!end || strcmp(end, "-verity")) return 0;
    *end = 0;
    int number = find_labelled(t, found->label);
    return partition(t, number ? number : 1).sectors / (BLOCK / SECTOR) >= found->wanted->blocks ? number : 0;
}

static int look_at(struct table *t, void *given)
{
    struct found *found = given;
    for (int number = 1; number <= MOST_PARTITIONS; number++) {
        if (!is_of_type(t, number, TYPE)) continue;
        found->is_seen = 1;
        if (!fits(found->wanted, t, number)) continue;
        label_of(t, number, found->label);
        found->tree = number;
        if ((found->data = find_data(found, t))) return found->data;
    }
    return 0;
}

static const char *map_verity(const struct wanted *w, const struct found *found, struct place *place)
{
    char parameters[2 * LONGEST], path[32];
    struct place tree;
    name_place(&tree, place->disk, found->tree);
    snprintf(parameters, sizeof parameters, "1 /dev/%s /dev/%s %d %d %llu 1 sha256 %s %s%s", place->name, tree.name,
             BLOCK, BLOCK, w->blocks, w->root, *w->salt ? w->salt : "-", w->option);
    struct target target = {found->label, "verity", parameters, w->blocks * (BLOCK / SECTOR), 1};
    const char *wrong = map_device(&target, path);
    if (!wrong) snprintf(place->name, sizeof place->name, "%s", path + strlen("/dev/"));
    return wrong;
}

/* Open the root; what went wrong, or NULL and its place, of which the name is that of the mapped device. */
const char *open_verified(const char *text, struct place *place)
{
    static struct wanted wanted;
    struct found found = {.wanted = &wanted};
    struct search search = {"a root of imagekit.verity=", look_at, &found, 0, &found.is_seen};
    if (take_apart(&wanted, text)) return "the argument is none";
    if (wait_for(&search, place)) return "none fits";
    const char *wrong = map_verity(&wanted, &found, place);
    if (!wrong) event("verity %s %.8s", found.label, wanted.root);
    return wrong;
}
