/* Attestation: the TPM's word for what was measured, as one text that the host can check.

   The text is lines of a word and what belongs to it, bytes in hexadecimal: "imagekit attestation 1", "image" NAME
   VERSION, "key" (TPMT_PUBLIC), "quote" (TPMS_ATTEST), "signature" (TPMT_SIGNATURE), 16 times "pcr" NUMBER VALUE, "log"
   (the firmware's event log), "end". imagekit/attestation.py reads it and believes nothing of it unproved.

   The key is made anew each time, from the seed of the TPM's endorsement hierarchy and a fixed template: the same
   whenever it is made, and nothing is stored. It is restricted: it signs only what the TPM itself said. Structures and
   numbers: "Trusted Platform Module Library", parts 2 and 3. */

#include "boot.h"
#include "attest.h"
#include "sealed/tpm.h"
#include <stdarg.h>
#include <sys/mount.h>

#ifndef EVENT_LOG /* tests have none of the kernel's */
#define SECURITY "/sys/kernel/security"
#define EVENT_LOG SECURITY "/tpm0/binary_bios_measurements"
#define RELEASE "/etc/os-release"
#endif

enum { CREATE_PRIMARY = 0x131, QUOTE = 0x158 }; /* TPM_CC: part 2, 6.5.2 */
enum { ECC = 0x23, ECDSA = 0x18, P256 = 3 };    /* TPM_ALG, TPM_ECC: part 2, 6.3 and 6.4 */
enum { ATTRIBUTES = 0x50472 }; /* fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA restricted sign: 8.3 */

static struct tpm tpm = {.file = -1};
static uint8_t event_log[LARGEST_LOG];
static size_t log_size, length;
static char image[LONGEST], text[LARGEST_REPLY];

static const char *refused(const char *what, int code)
{
    static char words[128];
    snprintf(words, sizeof words, "the TPM %s: %s", what, tpm_words(code));
    return words;
}

static void say(const char *form, ...)
{
    va_list list;
    va_start(list, form);
    if (length < sizeof text) length += (size_t)vsnprintf(text + length, sizeof text - length, form, list);
    va_end(list);
}

static void say_bytes(const char *word, const uint8_t *bytes, size_t size)
{
    static const char DIGITS[] = "0123456789abcdef";
    say("%s ", word);
    for (size_t i = 0; i < size && length + 3 < sizeof text; i++) {
        text[length++] = DIGITS[bytes[i] >> 4];
        text[length++] = DIGITS[bytes[i] & 15];
    }
    say("\n");
}

static void put_template(struct packet *p)
{
    put(p, 2, ECC);
    put(p, 2, ALG_SHA256);
    put(p, 4, ATTRIBUTES);
    put_sized(p, "", 0); /* policy */
    put(p, 2, ALG_NULL); /* symmetric */
    put(p, 2, ECDSA);
    put(p, 2, ALG_SHA256);
    put(p, 2, P256);
    put(p, 2, ALG_NULL); /* key derivation */
    put_sized(p, "", 0); /* x and y: the TPM's to say */
    put_sized(p, "", 0);
}

/* CreatePrimary (part 3, 24.1). What comes behind the public area is of no use here. */
static const char *make_key(uint32_t *handle)
{
    struct packet public = {.size = 0}, *p = begin(&tpm, CREATE_PRIMARY);
    size_t size;
    put_template(&public);
    put(p, 4, ENDORSEMENT);
    authorize(&tpm, PASSWORD);
    put(p, 2, 4); /* inSensitive: no password, no data */
    put(p, 4, 0);
    put_inner(p, &public);
    put_sized(p, "", 0); /* outsideInfo */
    put(p, 4, 0);        /* creationPCR */
    tpm.made = handle;
    int code = tpm_send(&tpm);
    if (code) return refused("makes no attestation key", code);
    const uint8_t *made = get_sized(&tpm.reply, &size);
    say_bytes("key", made, size);
    return made ? NULL : refused("makes no attestation key", TPM_BROKEN);
}

/* Quote (part 3, 18.4), of all PCRs that a boot measures into: attestation, then the signature up to the end. */
static const char *take_quote(uint32_t key, const char *nonce)
{
    struct packet *p = begin(&tpm, QUOTE), *r = &tpm.reply;
    size_t size;
    put(p, 4, key);
    authorize(&tpm, PASSWORD);
    put(p, 2, NONCE);
    for (int i = 0; i < NONCE; i++) put(p, 1, strtoul((char[]){nonce[2 * i], nonce[2 * i + 1], 0}, NULL, 16));
    put(p, 2, ALG_NULL); /* the key's own scheme */
    put_pcrs(p, (1U << MOST_PCRS) - 1);
    int code = tpm_send(&tpm);
    if (code) return refused("gives no quote", code);
    const uint8_t *attested = get_sized(r, &size);
    if (!attested) return refused("gives no quote", TPM_BROKEN);
    say_bytes("quote", attested, size);
    say_bytes("signature", r->bytes + r->at, r->size - r->at);
    return NULL;
}

static const char *read_pcrs(void)
{
    uint8_t values[MOST_PCRS][DIGEST];
    char word[16];
    int code = pcr_read(&tpm, (1U << MOST_PCRS) - 1, values);
    if (code) return refused("has no PCRs in SHA-256", code);
    for (int pcr = 0; pcr < MOST_PCRS; pcr++) {
        snprintf(word, sizeof word, "pcr %d", pcr);
        say_bytes(word, values[pcr], DIGEST);
    }
    return NULL;
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
    flush(&tpm, key);
    if (!problem) problem = read_pcrs();
    if (problem) return problem;
    say_bytes("log", event_log, log_size);
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
    if ((tpm.file = open_tpm()) < 0) return errno == ENOENT ? "there is no TPM" : strerror(errno);
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
