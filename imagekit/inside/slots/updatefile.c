/* An update as one signed stream (docs/updates.md): head, manifest, table of hashes, and what the table is of.

   Nothing of the manifest is read before its signature was verified by a key of the running image, and nothing of the
   rest is used that the manifest's hashes are not of. */

#include "slots.h"
#include "crypto_sign_ed25519.h"

enum { HEAD = 160, LARGEST = 4096, MOST_CHUNKS = 1 << 16 };

static const char ALTERED[] = "the update was altered, or is incomplete";
static const char HEX[] = "0123456789abcdef";

static char manifest[LARGEST + 1], *at;

/* All of so many bytes from a file or a pipe; -1 where it ends before. */
static int take(int file, void *bytes, size_t size)
{
    for (uint8_t *to = bytes; size;) {
        ssize_t n = read(file, to, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        to += n, size -= (size_t)n;
    }
    return 0;
}

/* ---- the signature ---- */

/* The second signature covers the first and the comment, and that, by its digest, the manifest. */
static int is_signed(const uint8_t *head, const char *text, size_t size, const struct settings *s)
{
    uint8_t whole[64 + 22 + 64 + 1];
    char hex[65];
    struct sha256 sum;
    sha256_begin(&sum);
    sha256_add(&sum, text, size);
    sha256_end_hex(&sum, hex);
    memcpy(whole, head + 24, 64);
    memcpy(whole + 64, "imagekit update sha256:", 23);
    memcpy(whole + 87, hex, 64);
    for (int i = 0; i < s->keys; i++)
        if (!memcmp(s->key[i], head + 16, 8) &&
            !crypto_sign_ed25519_verify_detached(head + 88, whole, sizeof whole, s->key[i] + 8))
            return 1;
    return 0;
}

/* ---- the manifest: one text has one meaning ---- */

/* The value of the next line, which must begin with this word; NULL for another. */
static char *line(const char *word)
{
    size_t length = strlen(word);
    char *found = at, *feed = at ? strchr(at, '\n') : NULL;
    at = NULL; /* unless all is well */
    if (!feed || strncmp(found, word, length)) return NULL;
    *feed = 0;
    for (char *p = found; *p; p++)
        if (*p < 0x20 || *p > 0x7e) return NULL;
    at = feed + 1;
    return found + length;
}

static void text(const char *word, char *to, size_t size)
{
    char *found = line(word);
    if (found && *found && strlen(found) < size) strcpy(to, found);
    else at = NULL;
}

static uint64_t number(const char *word, uint64_t most)
{
    char *found = line(word);
    size_t digits = found ? strspn(found, "0123456789") : 0;
    uint64_t n = digits && digits < 16 ? strtoull(found, NULL, 10) : most + 1;
    if (n > most || found[digits] || (*found == '0' && digits > 1)) at = NULL;
    return n;
}

/* Hexadecimal digits, or "-" where none may be. */
static void hex(const char *word, char *to, size_t digits)
{
    char *found = line(word);
    if (found && !strcmp(found, "-")) *to = 0;
    else if (found && strlen(found) == digits && strspn(found, HEX) == digits) strcpy(to, found);
    else at = NULL;
}

static int read_manifest(struct update *u, char sum[65])
{
    char *first = line("imagekit update 1");
    if (!first || *first) return 0;
    text("name: ", u->name, sizeof u->name);
    text("version: ", u->version, sizeof u->version);
    text("architecture: ", u->arch, sizeof u->arch);
    u->generation = (unsigned long)number("generation: ", UINT32_MAX);
    hex("roothash: ", u->root_hash, 64);
    hex("salt: ", u->salt, 64);
    u->root = number("root: ", 1ULL << 40);
    u->hashes = number("hashes: ", 1ULL << 40);
    u->uki = number("uki: ", UINT32_MAX);
    u->chunks = (uint32_t)number("chunks: ", MOST_CHUNKS);
    hex("table: sha256:", sum, 64);
    uint64_t chunks = (u->root + CHUNK - 1) / CHUNK + (u->hashes + CHUNK - 1) / CHUNK + (u->uki + CHUNK - 1) / CHUNK;
    return at && !*at && *sum && u->uki && chunks == u->chunks && u->root % BLOCK == 0 && u->hashes % BLOCK == 0 &&
           !u->root == !u->hashes && !u->root == !*u->root_hash && !u->root == !*u->salt;
}

/* ---- reading ---- */

/* Read all that stands before the chunks. What is wrong with it, or NULL. */
const char *open_update(struct update *u, int file, const struct settings *s)
{
    uint8_t head[HEAD];
    static const uint8_t ZEROS[8];
    char sum[65] = "", found[65];
    struct sha256 hash;
    memset(u, 0, sizeof *u);
    u->file = file;
    if (take(file, head, sizeof head) || memcmp(head, "IKUPDAT1", 8)) return "this is no update of imagekit";
    size_t size = little(head + 8, 4), table = little(head + 12, 4);
    if (!size || size > LARGEST || !table || table % 32 || table > MOST_CHUNKS * 32 || memcmp(head + 152, ZEROS, 8) ||
        take(file, manifest, size))
        return ALTERED;
    if (!s->keys) return "the running image has no key by which updates are verified";
    if (!is_signed(head, manifest, size, s)) return "the update is not signed by a key that the running image trusts";
    manifest[size] = 0;
    at = manifest;
    if (strlen(manifest) != size || !read_manifest(u, sum) || table != u->chunks * 32) return ALTERED;
    uint8_t *rows = malloc(table);
    if (!rows || take(file, rows, table)) return ALTERED;
    sha256_begin(&hash);
    sha256_add(&hash, rows, table);
    sha256_end_hex(&hash, found);
    u->table = rows;
    return strcmp(sum, found) ? ALTERED : NULL;
}

int is_chunk(const struct update *u, const uint8_t *bytes, uint32_t size, uint32_t number)
{
    uint8_t digest[32];
    struct sha256 sum;
    sha256_begin(&sum);
    sha256_add(&sum, bytes, size);
    sha256_end(&sum, digest);
    return !memcmp(digest, u->table + (size_t)number * 32, 32);
}

/* The next chunk, which is the one that was signed: it is hashed where it lies now, and used from there. */
const char *next_chunk(struct update *u, uint8_t *bytes, uint32_t size, uint32_t number)
{
    return take(u->file, bytes, size) || !is_chunk(u, bytes, size, number) ? ALTERED : NULL;
}

int at_end(const struct update *u)
{
    char more;
    return read(u->file, &more, 1) == 0;
}
