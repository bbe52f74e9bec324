/* Talking to a TPM 2.0: a command is put together, sent, and its reply taken apart.

   The TPM, and whoever sits on the bus to it, may answer anything: a reply is as long as was read, says of itself that
   it is as long, and every piece of it is taken by functions that cannot leave it. What is asked for more than is there
   makes the packet bad, and a bad reply is TPM_BROKEN, as is one of which something is left over.

   /dev/tpm0 rather than /dev/tpmrm0: nobody else speaks to the TPM in an initrd, and the resource manager would save
   and load all sessions and keys at every command, which makes four of one. So what is made here is flushed here. */

#define _GNU_SOURCE
#include "tpm.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE = 3000, PAUSE = 20, RETRIES = 400 }; /* milliseconds; of a TPM that is busy: eight seconds in all */
enum { HEADER = 10, NO_SESSIONS = 0x8001, SESSIONS = 0x8002 }; /* Part 2, 6.9; Part 3, 5.2 */
enum { RETRY = 0x922, YIELDED = 0x908, TESTING = 0x90a }; /* TPM_RC_...: Part 2, 6.6.3 */

static void pause_for(int milliseconds)
{
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000L}, NULL);
}

/* Open the TPM, which a driver may still be looking for; -1 when there is none. */
int tpm_open(struct tpm *tpm)
{
    static const char *const PATHS[] = {"/dev/tpm0", "/dev/tpmrm0"};
    for (int waited = 0; waited <= PATIENCE; waited += PAUSE) {
        for (size_t i = 0; i < sizeof PATHS / sizeof *PATHS; i++)
            if ((tpm->file = open(PATHS[i], O_RDWR | O_CLOEXEC)) >= 0) return 0;
        pause_for(PAUSE);
    }
    return -1;
}

/* ---- packets: numbers are big-endian (Part 1, 3.2) ---- */

void put_bytes(struct packet *p, const void *bytes, size_t size)
{
    if (size > sizeof p->bytes - p->size) p->is_bad = 1;
    if (p->is_bad) return;
    memcpy(p->bytes + p->size, bytes, size);
    p->size += size;
}

void put(struct packet *p, int bytes, uint64_t value)
{
    uint8_t number[8];
    for (int i = bytes; i--; value >>= 8) number[i] = (uint8_t)value;
    put_bytes(p, number, (size_t)bytes);
}

/* A TPM2B: how many bytes, and they. */
void put_sized(struct packet *p, const void *bytes, size_t size)
{
    put(p, 2, size);
    put_bytes(p, bytes, size);
}

/* The next bytes, or NULL when there are not as many. */
const uint8_t *get_bytes(struct packet *p, size_t size)
{
    if (p->is_bad || size > p->size - p->at) {
        p->is_bad = 1;
        return NULL;
    }
    p->at += size;
    return p->bytes + p->at - size;
}

uint64_t get(struct packet *p, int bytes)
{
    uint64_t value = 0;
    const uint8_t *number = get_bytes(p, (size_t)bytes);
    for (int i = 0; number && i < bytes; i++) value = value << 8 | number[i];
    return value;
}

const uint8_t *get_sized(struct packet *p, size_t *size)
{
    *size = (size_t)get(p, 2);
    const uint8_t *bytes = get_bytes(p, *size);
    if (!bytes) *size = 0;
    return bytes;
}

/* Whether all of it was taken, and was there. */
int is_done(const struct packet *p) { return !p->is_bad && p->at == p->size; }

/* ---- commands ---- */

/* Begin a command (Part 3, 5.2): its handles follow, then authorize() if it needs that, then its parameters. */
struct packet *begin(struct tpm *tpm, uint32_t code)
{
    struct packet *p = &tpm->command;
    p->size = p->at = 0;
    p->is_bad = 0;
    tpm->made = NULL;
    put(p, 2, NO_SESSIONS);
    put(p, 4, 0); /* the size, which tpm_send() fills in */
    put(p, 4, code);
    return p;
}

/* Authorize by a policy session, which goes on, or by a password: TPMS_AUTH_COMMAND (Part 2, 10.13.2). */
static void authorize_by(struct tpm *tpm, uint32_t session, const void *password, size_t size)
{
    struct packet *p = &tpm->command;
    p->bytes[1] = SESSIONS & 0xff;
    put(p, 4, 4 + 2 + 1 + 2 + size);
    put(p, 4, session);
    put_sized(p, "", 0);
    put(p, 1, session != PASSWORD);
    put_sized(p, password, size);
}

/* A password here is the empty one. */
void authorize(struct tpm *tpm, uint32_t session) { authorize_by(tpm, session, "", 0); }

void authorize_with(struct tpm *tpm, const uint8_t password[DIGEST]) { authorize_by(tpm, PASSWORD, password, DIGEST); }

static int write_all(int file, const uint8_t *bytes, size_t size)
{
    while (size) {
        ssize_t n = write(file, bytes, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

/* One reply. A device gives it as a whole, a socket to a simulator may give it in pieces. */
static int read_reply(int file, struct packet *p)
{
    p->size = p->at = 0;
    p->is_bad = 0;
    for (size_t wanted = HEADER; p->size < wanted;) {
        ssize_t n = read(file, p->bytes + p->size, sizeof p->bytes - p->size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        p->size += (size_t)n;
        if (p->size < HEADER) continue;
        p->at = 2;
        wanted = (size_t)get(p, 4);
        if (wanted < HEADER || wanted > sizeof p->bytes) return -1;
        if (p->size > wanted) return -1;
    }
    p->at = 0;
    return 0;
}

/* Take the session's part off the end (Part 3, 5.3), so that only parameters are left. */
static int take_sessions(struct packet *p)
{
    size_t size = (size_t)get(p, 4), nonce, hmac, begin = p->at;
    if (!get_bytes(p, size)) return -1;
    get_sized(p, &nonce);
    get(p, 1);
    get_sized(p, &hmac);
    if (!is_done(p)) return -1;
    p->at = begin;
    p->size = begin + size;
    return 0;
}

static int send_once(struct tpm *tpm)
{
    struct packet *p = &tpm->command, *r = &tpm->reply;
    if (write_all(tpm->file, p->bytes, p->size) || read_reply(tpm->file, r)) return TPM_BROKEN;
    uint64_t tag = get(r, 2), size = get(r, 4), code = get(r, 4);
    if (size != r->size || code > 0xfff) return TPM_BROKEN;
    if (code) return tag == NO_SESSIONS && is_done(r) ? (int)code : TPM_BROKEN; /* a refusal says no more than that */
    if (tag != (uint64_t)(p->bytes[0] << 8 | p->bytes[1])) return TPM_BROKEN;
    if (tpm->made) *tpm->made = (uint32_t)get(r, 4);
    return tag == SESSIONS && take_sessions(r) ? TPM_BROKEN : 0;
}

/* Send the command, again while the TPM is busy, and begin its reply: 0, or one of the codes of tpm.h. */
int tpm_send(struct tpm *tpm)
{
    struct packet *p = &tpm->command;
    if (p->is_bad) return TPM_BROKEN;
    for (int i = 0; i < 4; i++) p->bytes[2 + i] = (uint8_t)(p->size >> (24 - 8 * i));
    int code = send_once(tpm);
    for (int tries = 0; tries < RETRIES && (code == RETRY || code == YIELDED || code == TESTING); tries++) {
        pause_for(PAUSE);
        code = send_once(tpm);
    }
    if (code == TPM_BROKEN) return code;
    return code & 0x80 ? code & 0xbf : code; /* format one carries a number in its other bits (Part 2, 6.6.2) */
}

/* A code as words for a message. */
const char *tpm_words(int code)
{
    static char words[32];
    if (code == TPM_BROKEN) return "no TPM speaks like that";
    snprintf(words, sizeof words, "TPM error 0x%x", (unsigned)code);
    return words;
}
