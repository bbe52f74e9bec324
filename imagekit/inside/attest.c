/* Attestation: the TPM's word for what was measured, as one text that the host can check.

   The text is lines of a word and what belongs to it, bytes in hexadecimal: "imagekit attestation 1", "image" NAME
   VERSION, "key" (TPMT_PUBLIC), "quote" (TPMS_ATTEST), "signature" (TPMT_SIGNATURE), 16 times "pcr" NUMBER VALUE, "log"
   (the firmware's event log), "end". imagekit/attestation.py reads it and believes nothing of it unproved.

   The key is made anew each time, from the seed of the TPM's endorsement hierarchy and a fixed template: the same
   whenever it is made, and nothing is stored. It is restricted: it signs only what the TPM itself said. Structures and
   numbers: "Trusted Platform Module Library", parts 2 and 3. */

#include "boot.h"
#include "attest.h"
#include <stdarg.h>
#include <sys/mount.h>

#ifndef EVENT_LOG /* tests have none of the kernel's */
#define SECURITY "/sys/kernel/security"
#define EVENT_LOG SECURITY "/tpm0/binary_bios_measurements"
#define RELEASE "/etc/os-release"
#endif

enum {
    SESSIONS = 0x8002, NO_SESSIONS = 0x8001, /* TPM_ST */
    CREATE_PRIMARY = 0x131, QUOTE = 0x158, FLUSH = 0x165, PCR_READ = 0x17e, /* TPM_CC */
    ENDORSEMENT = 0x4000000b, PASSWORD = 0x40000009, /* TPM_RH, TPM_RS */
    SHA256 = 0x0b, ECC = 0x23, ECDSA = 0x18, P256 = 3, NONE = 0x10, /* TPM_ALG, TPM_ECC */
    /* fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA restricted sign */
    ATTRIBUTES = 0x50472,
    PCRS = 16, DIGEST = 32,
    HEADER = 10, ROOM = 4096,
};

struct part { /* of an answer */
    const uint8_t *data;
    size_t size;
};

static uint8_t command[512], answer[ROOM], event_log[LARGEST_LOG];
static size_t filled, log_size;
static char image[LONGEST], text[LARGEST_REPLY];
static size_t length;
static uint32_t code; /* TPM_RC of the last answer */
static int tpm = -1;

static void put(int size, uint64_t value)
{
    while (size-- && filled < sizeof command) command[filled++] = (uint8_t)(value >> 8 * size);
}

static uint32_t number(const uint8_t *from, int size)
{
    uint32_t value = 0;
    while (size--) value = value << 8 | *from++;
    return value;
}

static void begin(int tag, uint32_t code)
{
    filled = 0;
    put(2, (uint64_t)tag);
    put(4, 0);
    put(4, code);
}

/* The empty authorization, of a key or hierarchy that has no password. */
static void put_password(void)
{
    put(4, 9);
    put(4, PASSWORD);
    put(2, 0);
    put(1, 0);
    put(2, 0);
}

static void put_selection(uint32_t pcrs)
{
    put(4, 1);
    put(2, SHA256);
    put(1, 3);
    for (int i = 0; i < 3; i++) put(1, pcrs >> 8 * i & 0xff);
}

/* What follows `before` bytes behind the header of the TPM's answer; none when it refused. */
static struct part run(size_t before)
{
    struct part none = {NULL, 0};
    for (int i = 0; i < 4; i++) command[2 + i] = (uint8_t)(filled >> 8 * (3 - i));
    ssize_t n = ask_tpm(tpm, command, filled, answer, sizeof answer);
    code = n < HEADER ? 0 : number(answer + 6, 4);
    if (n < (ssize_t)(HEADER + before) || code) return none;
    return (struct part){answer + HEADER + before, (size_t)n - HEADER - before};
}

/* The bytes behind their size in 16 bits, and past them; none where they are cut or empty. */
static struct part sized(struct part *from)
{
    size_t size = from->size < 2 ? 0 : number(from->data, 2);
    if (!size || size > from->size - 2) return (struct part){NULL, 0};
    struct part part = {from->data + 2, size};
    from->data += 2 + size;
    from->size -= 2 + size;
    return part;
}

static const char *refused(const char *what)
{
    static char words[128];
    snprintf(words, sizeof words, "the TPM %s (0x%x)", what, code);
    return words;
}

static void say(const char *form, ...)
{
    va_list list;
    va_start(list, form);
    if (length < sizeof text) length += (size_t)vsnprintf(text + length, sizeof text - length, form, list);
    va_end(list);
}

static void say_bytes(const char *word, struct part part)
{
    static const char DIGITS[] = "0123456789abcdef";
    say("%s ", word);
    for (size_t i = 0; i < part.size && length + 3 < sizeof text; i++) {
        text[length++] = DIGITS[part.data[i] >> 4];
        text[length++] = DIGITS[part.data[i] & 15];
    }
    say("\n");
}

/* CreatePrimary (part 3, 24.1). */
static const char *make_key(uint32_t *handle)
{
    begin(SESSIONS, CREATE_PRIMARY);
    put(4, ENDORSEMENT);
    put_password();
    put(2, 4); /* inSensitive: no password, no data */
    put(4, 0);
    put(2, 24); /* inPublic */
    put(2, ECC);
    put(2, SHA256);
    put(4, ATTRIBUTES);
    put(2, 0); /* policy */
    put(2, NONE); /* symmetric */
    put(2, ECDSA);
    put(2, SHA256);
    put(2, P256);
    put(2, NONE); /* key derivation */
    put(4, 0); /* x and y: the TPM's to say */
    put(2, 0); /* outsideInfo */
    put(4, 0); /* creationPCR */
    struct part found = run(8); /* handle, size of what follows */
    struct part public = sized(&found);
    if (!public.size) return refused("makes no attestation key");
    *handle = number(answer + HEADER, 4);
    say_bytes("key", public);
    return NULL;
}

/* Quote (part 3, 18.4), of all PCRs that a boot measures into. */
static const char *take_quote(uint32_t key, const char *nonce)
{
    begin(SESSIONS, QUOTE);
    put(4, key);
    put_password();
    put(2, NONCE);
    for (int i = 0; i < NONCE; i++) {
        char byte[3] = {nonce[2 * i], nonce[2 * i + 1], 0};
        put(1, strtoul(byte, NULL, 16));
    }
    put(2, NONE); /* scheme: the key's own */
    put_selection((1 << PCRS) - 1);
    struct part left = run(4), rest = left;
    struct part attested = sized(&rest);
    size_t whole = left.data ? number(left.data - 4, 4) : 0;
    if (!attested.size || whole > left.size || whole < 2 + attested.size) return refused("gives no quote");
    say_bytes("quote", attested);
    say_bytes("signature", (struct part){rest.data, whole - 2 - attested.size});
    return NULL;
}

/* PCR_Read (part 3, 22.4), one after the other: a TPM may give fewer at once than it is asked for. */
static const char *read_pcrs(void)
{
    for (int pcr = 0; pcr < PCRS; pcr++) {
        char word[16];
        begin(NO_SESSIONS, PCR_READ);
        put_selection(1U << pcr);
        struct part left = run(4 + 10 + 4); /* counter, selection, count */
        struct part value = left.data && number(left.data - 4, 4) == 1 ? sized(&left) : left;
        if (value.size != DIGEST) return refused("has no PCRs in SHA-256");
        snprintf(word, sizeof word, "pcr %d", pcr);
        say_bytes(word, value);
    }
    return NULL;
}

static void flush(uint32_t handle)
{
    begin(NO_SESSIONS, FLUSH);
    put(4, handle);
    run(0);
}

/* The whole text, in memory of ours until the next is asked for; or what went wrong. */
const char *attestation(const char *nonce, const char **made, size_t *size)
{
    uint32_t key = 0;
    length = 0;
    say("imagekit attestation 1\nimage%s\n", image);
    const char *problem = make_key(&key);
    if (problem) return problem;
    problem = take_quote(key, nonce);
    flush(key);
    if (!problem) problem = read_pcrs();
    if (problem) return problem;
    say_bytes("log", (struct part){event_log, log_size});
    say("end\n");
    *made = text;
    *size = length;
    return NULL;
}

int is_nonce(const char *hex, size_t size)
{
    return size == 2 * NONCE && strspn(hex, "0123456789abcdef") >= size;
}

/* NAME and VERSION as the image's os-release has them; each behind a space. */
static void read_name(void)
{
    char line[LONGEST], name[256] = "-", version[256] = "-";
    FILE *file = fopen(RELEASE, "re");
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "IMAGE_ID=%255[A-Za-z0-9._+~-]", name);
        sscanf(line, "IMAGE_VERSION=%255[A-Za-z0-9._+~:-]", version);
    }
    if (file) fclose(file);
    snprintf(image, sizeof image, " %s %s", name, version);
}

/* The firmware is gone: its log does not change any more. */
static const char *read_log(void)
{
    int file = open(EVENT_LOG, O_RDONLY | O_CLOEXEC);
#ifdef SECURITY
    if (file < 0 && !mount("securityfs", SECURITY, "securityfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        file = open(EVENT_LOG, O_RDONLY | O_CLOEXEC);
#endif
    if (file < 0) return "the firmware left no event log";
    ssize_t n;
    for (log_size = 0; (n = read(file, event_log + log_size, sizeof event_log - log_size)) > 0;) log_size += (size_t)n;
    close(file);
    if (n < 0) return "the firmware's event log cannot be read";
    return log_size < sizeof event_log ? NULL : "the firmware's event log is too large";
}

/* All that needs privileges; what follows does not. */
const char *prepare_attestation(void)
{
    read_name();
    if ((tpm = open_tpm()) < 0) return errno == ENOENT ? "there is no TPM" : strerror(errno);
    return read_log();
}

int attest(const char *nonce)
{
    const char *made, *problem = is_nonce(nonce, strlen(nonce)) ? prepare_attestation() : "that is no nonce";
    size_t size = 0;
    if (!problem) problem = attestation(nonce, &made, &size);
    if (!problem && fwrite(made, 1, size, stdout) == size && !fflush(stdout)) return 0;
    fprintf(stderr, "imagekit-attest: %s\n", problem ? problem : strerror(errno));
    return 1;
}
