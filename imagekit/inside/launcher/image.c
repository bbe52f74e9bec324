/* The signed file behind the launcher (docs/format.md): found, read strictly, and verified by the key between them. */

#include "launcher.h"
#include "crypto_sign_ed25519.h"

enum { PIECE = 15960, FRAME = 26, END = 186, ALIGNED = 4096, LONGEST = 4096, LARGEST = 65536, MOST_WORDS = 8192 };

struct slot { /* the last bytes before the body */
    char magic[16];
    uint8_t number[8], key[32], is_read_only, zeros[7];
};
struct end { /* the data of IS, but for its lengths */
    char magic[8];
    uint8_t manifest[4], table[4], number[8], signature[64], whole[64], zeros[8];
};

static struct slot slot;
static struct end end;
static char manifest[LARGEST + FRAME * (LARGEST / PIECE + 1) + 1], *at, *stop; /* at: what is not read yet, to stop */
static char told[] = "imagekit image sha256:0000000000000000000000000000000000000000000000000000000000000000";
static const char ZEROS[8];
static char *every[MOST_WORDS + 2], **words = every; /* what is given more than once, of all kinds */

_Noreturn void damaged(const char *what) { fail("this file is damaged or was changed: %s", what); }

size_t framed(size_t size) { return size + FRAME * ((size + PIECE - 1) / PIECE); }

/* Take the data out of empty gzip members (RFC 1952, 2.3.1.1), of which every other byte must be the one it can be. */
void unframe(char *data, size_t size, const char *kind)
{
    const char *from = data;
    for (size_t done = 0, n; done < size; done += n, from += FRAME + n) {
        n = size - done < PIECE ? size - done : PIECE;
        const uint8_t head[16] = {0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, (uint8_t)(n + 4), (uint8_t)((n + 4) >> 8),
                                  (uint8_t)kind[0], (uint8_t)kind[1], (uint8_t)n, (uint8_t)(n >> 8)};
        if (memcmp(from, head, 16) || memcmp(from + 16 + n, "\3\0\0\0\0\0\0\0\0", 10)) damaged("its trailer");
        memmove(data + done, from + 16, n);
    }
}

void read_all(int file, void *bytes, size_t size, uint64_t from)
{
    for (ssize_t n; size; bytes = (char *)bytes + n, from += (uint64_t)n, size -= (size_t)n) {
        n = pread(file, bytes, size, (off_t)from);
        if (n < 0) fail("cannot read this file: %s", strerror(errno));
        if (n == 0) damaged("it is too short");
    }
}

uint32_t get32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }

/* ---- the manifest: one text has one meaning ---- */

/* The value of the next line, if that begins with this word. */
static char *value(const char *word)
{
    size_t length = strlen(word);
    char *line = at, *feed = memchr(at, '\n', (size_t)(stop - at));
    if (!feed || feed - line > LONGEST) damaged("its manifest");
    if (strncmp(line, word, length)) return NULL;
    for (char *p = line; p < feed; p++)
        if ((uint8_t)*p < 0x20 || *p == 0x7f) damaged("its manifest");
    *feed = 0;
    at = feed + 1;
    return line + length;
}

static char *one(const char *word)
{
    char *found = value(word);
    if (!found) damaged("its manifest");
    return found;
}

static uint64_t number(char **text, uint64_t most)
{
    char *from = *text;
    uint64_t n = strtoull(from, text, 10);
    if (*from < '0' || *from > '9' || (*from == '0' && *text > from + 1) || *text > from + 15 || n > most)
        damaged("a number of its manifest");
    return n;
}

static uint64_t whole_number(const char *word, uint64_t most)
{
    char *text = one(word);
    uint64_t n = number(&text, most);
    if (*text) damaged("a number of its manifest");
    return n;
}

static void digest(char to[65], const char *word)
{
    char *text = one(word);
    if (strlen(text) != 64 || strspn(text, "0123456789abcdef") != 64) damaged("a digest of its manifest");
    memcpy(to, text, 65);
}

/* As many lines as begin with this word; the list ends with NULL. */
static char **repeated(const char *word)
{
    char **list = words;
    for (char *text; (text = value(word)); *words++ = text)
        if (words == every + MOST_WORDS) damaged("its manifest: it has too many lines");
    return *words++ = NULL, list;
}

static void read_manifest(struct image *image)
{
    at = manifest;
    stop = manifest + image->manifest;
    if (*one("imagekit image 1")) damaged("its manifest");
    char *payload = one("payload: "), *user;
    image->is_erofs = !strcmp(payload, "erofs");
    if (!image->is_erofs && strcmp(payload, "tar.gz")) damaged("its payload is of no known kind");
    one("name: "), one("version: "), one("architecture: ");
    image->arguments = repeated("argument: ");
    image->environment = repeated("environment: ");
    if (*image->arguments && **image->arguments != '/') damaged("the program of its manifest");
    for (char **text = image->environment; *text; text++) {
        size_t n = strspn(*text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");
        if (!n || (*text)[n] != '=' || **text <= '9') damaged("a variable of its manifest");
    }
    user = one("user: ");
    image->uid = (unsigned)number(&user, 4294967294);
    if (*user++ != ':') damaged("the user of its manifest");
    image->gid = (unsigned)number(&user, 4294967294);
    image->workdir = one("workdir: ");
    for (char *part = image->workdir; part; part = strchr(part + 1, '/'))
        if (*part != '/' || !strncmp(part, "/../", 4) || !strcmp(part, "/..")) damaged("the folder of its manifest");
    if (*user) damaged("user or folder of its manifest");
    one("compressor: ");
    digest(image->content, "content: sha256:");
    image->size = whole_number("size: ", 1ULL << 50);
    image->body = whole_number("body: ", 1ULL << 50);
    image->chunks = (uint32_t)whole_number("chunks: ", 65536);
    digest(image->sum, "table: sha256:");
    if (at != stop || image->table != 40 * image->chunks) damaged("its manifest");
}

/* ---- finding and verifying ---- */

static void read_trailer(struct image *image, uint64_t size)
{
    char last[END];
    if (size < END) damaged("it is too short");
    read_all(image->file, last, END, size - END);
    unframe(last, sizeof end, "IS");
    memcpy(&end, last, sizeof end);
    image->manifest = get32(end.manifest);
    image->table = get32(end.table);
    if (memcmp(end.magic, "IKIMAGE1", 8) || memcmp(end.zeros, ZEROS, 8) || !image->manifest ||
        image->manifest > LARGEST || !image->table || image->table % 40 || image->table > 65536 * 40)
        damaged("its last bytes");
    uint64_t trailer = framed(image->manifest) + framed(image->table) + END;
    if (trailer > size) damaged("it is too short");
    image->trailer = size - trailer;
    read_all(image->file, manifest, framed(image->manifest), image->trailer);
    unframe(manifest, image->manifest, "IM");
}

/* The key that was baked in is in the last bytes before the body. */
static void read_slot(struct image *image)
{
    if (image->body > image->trailer || image->trailer - image->body < sizeof slot) damaged("it is too short");
    image->start = image->trailer - image->body;
    read_all(image->file, &slot, sizeof slot, image->start - sizeof slot);
    if (memcmp(slot.magic, "imagekit bundle\n", 16) || slot.is_read_only > 1 || memcmp(slot.zeros, ZEROS, 7) ||
        image->start % ALIGNED || memcmp(slot.number, end.number, 8))
        damaged("the key in it");
    image->is_read_only = slot.is_read_only;
}

/* Read what the file says of itself. Nothing of that may be used before verify_image; but for the names of what was
   unpacked and verified before, which are made of digests. */
void open_image(struct image *image, int file)
{
    struct sha256 sum;
    off_t size = lseek(file, 0, SEEK_END);
    image->file = file;
    read_trailer(image, size < 0 ? 0 : (uint64_t)size);
    sha256_begin(&sum);
    sha256_add(&sum, manifest, image->manifest);
    sha256_end_hex(&sum, told + sizeof told - 65);
    read_manifest(image);
    read_slot(image);
    sha256_begin(&sum);
    sha256_add(&sum, &slot, sizeof slot);
    sha256_add(&sum, &end, sizeof end);
    sha256_add(&sum, told, sizeof told - 1);
    sha256_end_hex(&sum, image->vouched);
}

/* The second signature covers the first and, by its digest, the manifest. */
void verify_image(void)
{
    uint8_t text[64 + sizeof told - 1];
    memcpy(text, end.signature, 64);
    memcpy(text + 64, told, sizeof told - 1);
    if (crypto_sign_ed25519_verify_detached(end.whole, text, sizeof text, slot.key))
        damaged("its signature does not fit");
}

void show_image(const struct image *image)
{
    for (uint32_t i = 0; i < image->manifest; i++) putchar(manifest[i] ? manifest[i] : '\n');
    printf("signed by key ");
    for (int i = 7; i >= 0; i--) printf("%02X", slot.number[i]);
    putchar('\n');
}
