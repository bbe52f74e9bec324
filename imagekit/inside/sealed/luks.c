/* A LUKS2 header (LUKS2 On-Disk Format Specification 1.1.4), for the recovery key: with it cryptsetup opens the disk
   without this machine. Nothing of it is believed when the TPM opens the disk; but it has to be as it was written.

   There is one keyslot, and its passphrase is a key of 160 bits: so the few rounds of PBKDF2, which is there to make
   words that people think of expensive to try, do not matter. Its area is encrypted by dm-crypt, as cryptsetup does
   where the kernel has no other way. The two headers are written last: without them the disk is empty. */

#include "sealed.h"
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/random.h>

enum { SECTOR_BYTES = 512, HEADER = 16384, JSON = 4096, AREA = 2 * HEADER, STRIPES = 4000, ROUNDS = 1000, SALT = 32 };
enum { SEQUENCE = 16, CHECKSUM_NAME = 72, HEADER_SALT = 104, UUID = 168, PLACE = 256, CHECKSUM = 448 }; /* 2.1 */

/* ---- PBKDF2 with HMAC-SHA-256 (RFC 8018, 5.2; RFC 2104) ---- */

static void begin_hmac(struct sha256 *s, const uint8_t *key, size_t size, uint8_t pad)
{
    uint8_t block[64];
    for (size_t i = 0; i < sizeof block; i++) block[i] = (uint8_t)((i < size ? key[i] : 0) ^ pad);
    sha256_begin(s);
    sha256_add(s, block, sizeof block);
}

static void end_hmac(struct sha256 inner, struct sha256 outer, const void *bytes, size_t size, uint8_t digest[DIGEST])
{
    sha256_add(&inner, bytes, size);
    sha256_end(&inner, digest);
    sha256_add(&outer, digest, DIGEST);
    sha256_end(&outer, digest);
}

static void stretch(const uint8_t *secret, size_t length, const uint8_t salt[SALT], uint8_t *key, size_t size)
{
    struct sha256 inner, outer;
    uint8_t first[SALT + 4], u[DIGEST];
    begin_hmac(&inner, secret, length, 0x36); /* at most 64 bytes, else they would have to be hashed */
    begin_hmac(&outer, secret, length, 0x5c);
    memcpy(first, salt, SALT);
    for (size_t at = 0; at < size; at += DIGEST) {
        memcpy(first + SALT, (uint8_t[]){0, 0, 0, (uint8_t)(at / DIGEST + 1)}, 4);
        end_hmac(inner, outer, first, sizeof first, u);
        memcpy(key + at, u, DIGEST);
        for (int round = 1; round < ROUNDS; round++) {
            end_hmac(inner, outer, u, DIGEST, u);
            for (size_t i = 0; i < DIGEST; i++) key[at + i] ^= u[i];
        }
    }
}

/* ---- anti-forensic stripes (4.2.3 of the LUKS1 specification) ---- */

static void diffuse(uint8_t block[VOLUME_KEY])
{
    struct sha256 s;
    for (int i = 0; i < VOLUME_KEY / DIGEST; i++) {
        sha256_begin(&s);
        sha256_add(&s, (uint8_t[]){0, 0, 0, (uint8_t)i}, 4);
        sha256_add(&s, block + i * DIGEST, DIGEST);
        sha256_end(&s, block + i * DIGEST);
    }
}

static int fill_randomly(uint8_t *bytes, size_t size)
{
    for (ssize_t n; size; bytes += n, size -= (size_t)n)
        if ((n = getrandom(bytes, size < 256 ? size : 256, 0)) <= 0) return -1; /* not more at once: getrandom(2) */
    return 0;
}

static int split(const uint8_t key[VOLUME_KEY], uint8_t stripes[STRIPES * VOLUME_KEY])
{
    uint8_t mixed[VOLUME_KEY] = {0}, *last = stripes + (STRIPES - 1) * VOLUME_KEY;
    if (fill_randomly(stripes, (STRIPES - 1) * VOLUME_KEY)) return -1;
    for (const uint8_t *stripe = stripes; stripe < last; stripe += VOLUME_KEY) {
        for (int i = 0; i < VOLUME_KEY; i++) mixed[i] ^= stripe[i];
        diffuse(mixed);
    }
    for (int i = 0; i < VOLUME_KEY; i++) last[i] = mixed[i] ^ key[i];
    return 0;
}

/* ---- writing ---- */

static int store(int file, const void *bytes, size_t size, off_t where)
{
    return pwrite(file, bytes, size, where) == (ssize_t)size ? 0 : -1;
}

static const char *write_area(const char *device, const uint8_t key[VOLUME_KEY], const uint8_t by[VOLUME_KEY])
{
    static uint8_t stripes[STRIPES * VOLUME_KEY];
    struct crypt crypt = {"imagekit-keyslot", device, AREA / SECTOR_BYTES, sizeof stripes / SECTOR_BYTES, by};
    char path[32];
    if (split(key, stripes)) return "no random numbers";
    const char *wrong = map_crypt(&crypt, path);
    if (wrong) return wrong;
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (store(file, stripes, sizeof stripes, 0) || fsync(file)) wrong = strerror(errno);
    close(file);
    unmap_device(crypt.name);
    explicit_bzero(stripes, sizeof stripes);
    return wrong;
}

static const char *base64(const uint8_t bytes[SALT], char text[45])
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *to = text;
    for (int i = 0; i < SALT; i += 3) {
        uint32_t held = (uint32_t)bytes[i] << 16 | (uint32_t)bytes[i + 1] << 8 | (i + 2 < SALT ? bytes[i + 2] : 0);
        for (int shift = 18; shift >= 0; shift -= 6) *to++ = DIGITS[held >> shift & 63];
    }
    to[-1] = '='; /* 32 bytes leave two for the last group */
    *to = 0;
    return text;
}

static void put_json(uint8_t header[HEADER], const uint8_t salts[2][SALT], const uint8_t digest[DIGEST])
{
    char slot[45], check[45], told[45];
    snprintf((char *)header + JSON, HEADER - JSON,
             "{\"keyslots\":{\"0\":{\"type\":\"luks2\",\"key_size\":64,"
             "\"af\":{\"type\":\"luks1\",\"stripes\":%d,\"hash\":\"sha256\"},"
             "\"area\":{\"type\":\"raw\",\"offset\":\"%d\",\"size\":\"258048\","
             "\"encryption\":\"aes-xts-plain64\",\"key_size\":64},"
             "\"kdf\":{\"type\":\"pbkdf2\",\"hash\":\"sha256\",\"iterations\":%d,\"salt\":\"%s\"}}},\"tokens\":{},"
             "\"segments\":{\"0\":{\"type\":\"crypt\",\"offset\":\"%d\",\"size\":\"dynamic\",\"iv_tweak\":\"0\","
             "\"encryption\":\"aes-xts-plain64\",\"sector_size\":512}},"
             "\"digests\":{\"0\":{\"type\":\"pbkdf2\",\"keyslots\":[\"0\"],\"segments\":[\"0\"],\"hash\":\"sha256\","
             "\"iterations\":%d,\"salt\":\"%s\",\"digest\":\"%s\"}},"
             "\"config\":{\"json_size\":\"%d\",\"keyslots_size\":\"%d\"}}",
             STRIPES, AREA, ROUNDS, base64(salts[0], slot), OFFSET, ROUNDS, base64(salts[1], check),
             base64(digest, told), HEADER - JSON, HEADERS - AREA);
}

static void put_number(uint8_t *bytes, int size, uint64_t value)
{
    for (; size--; value >>= 8) bytes[size] = (uint8_t)value;
}

static void put_checksum(uint8_t header[HEADER])
{
    struct sha256 s;
    memset(header + CHECKSUM, 0, 64);
    sha256_begin(&s);
    sha256_add(&s, header, HEADER);
    sha256_end(&s, header + CHECKSUM);
}

/* The second header says of itself where it is, and has a salt of its own; the first one is written last of all. */
static const char *write_headers(int file, uint8_t header[HEADER])
{
    put_number(header + 6, 2, 2);
    put_number(header + 8, 8, HEADER);
    put_number(header + SEQUENCE, 8, 1);
    strcpy((char *)header + CHECKSUM_NAME, "sha256");
    for (int is_second = 1; is_second >= 0; is_second--) {
        memcpy(header, is_second ? "SKUL\xba\xbe" : "LUKS\xba\xbe", 6);
        put_number(header + PLACE, 8, is_second ? HEADER : 0);
        if (fill_randomly(header + HEADER_SALT, 64)) return "no random numbers";
        put_checksum(header);
        if (store(file, header, HEADER, is_second ? HEADER : 0) || fsync(file)) return strerror(errno);
    }
    return NULL;
}

/* A random UUID (RFC 9562, 5.4). */
static int make_uuid(char uuid[37])
{
    uint8_t b[16];
    if (fill_randomly(b, sizeof b)) return -1;
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    snprintf(uuid, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3],
             b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    return 0;
}

/* Write the header by which a passphrase opens the disk that has this key; what went wrong, or NULL. */
const char *write_luks(const char *device, const uint8_t key[VOLUME_KEY], const char *passphrase)
{
    static uint8_t header[HEADER];
    char uuid[37];
    uint8_t salts[2][SALT], by[VOLUME_KEY], digest[DIGEST];
    memset(header, 0, sizeof header);
    if (make_uuid(uuid) || fill_randomly(salts[0], sizeof salts)) return "no random numbers";
    stretch((const uint8_t *)passphrase, strlen(passphrase), salts[0], by, sizeof by);
    stretch(key, VOLUME_KEY, salts[1], digest, sizeof digest);
    const char *wrong = write_area(device, key, by);
    explicit_bzero(by, sizeof by);
    if (wrong) return wrong;
    memcpy(header + UUID, uuid, 37);
    put_json(header, salts, digest);
    int file = open(device, O_RDWR | O_CLOEXEC);
    wrong = file < 0 ? strerror(errno) : write_headers(file, header);
    close(file);
    return wrong;
}

/* What a disk has for a header. What the mapping of the keyslot wrote went past the cache of the device, which is
   dropped first. */
const char *read_headers(const char *device, struct headers *headers)
{
    static uint8_t piece[32768];
    struct sha256 s;
    int file = open(device, O_RDONLY | O_CLOEXEC), failed = file < 0 || ioctl(file, BLKFLSBUF, 0);
    sha256_begin(&s);
    for (off_t at = 0; !failed && at < HEADERS; at += sizeof piece) {
        failed = pread(file, piece, sizeof piece, at) != sizeof piece;
        sha256_add(&s, piece, sizeof piece);
        if (at) continue;
        headers->is_luks = !memcmp(piece, "LUKS\xba\xbe", 6);
        memcpy(headers->uuid, piece + UUID, sizeof headers->uuid);
    }
    sha256_end(&s, headers->digest);
    close(file);
    return failed ? "it cannot be read" : NULL;
}
