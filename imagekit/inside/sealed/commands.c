/* The commands of a TPM that a sealed disk needs: Part 3, by the number of the section. Each gives 0 or a code of
   tpm.h, and fills what it was given only then. */

#include "tpm.h"
#include <string.h>

enum {
    CC_HIERARCHY_CHANGE_AUTH = 0x129,
    CC_SET_PRIMARY_POLICY = 0x12e,
    CC_POLICY_NV = 0x149,
    CC_FLUSH = 0x165,
    CC_LOAD_EXTERNAL = 0x167,
    CC_POLICY_AUTHORIZE = 0x16a,
    CC_START_SESSION = 0x176,
    CC_VERIFY_SIGNATURE = 0x177,
    CC_GET_CAPABILITY = 0x17a,
    CC_GET_RANDOM = 0x17b,
    CC_PCR_READ = 0x17e,
    CC_POLICY_PCR = 0x17f,
    CC_POLICY_RESTART = 0x180,
    CC_PCR_EXTEND = 0x182,
}; /* Part 2, 6.5.2 */

enum { POLICY_SESSION = 1, LOWER_OR_EQUAL = 9 }; /* TPM_SE_POLICY, TPM_EO_UNSIGNED_LE: Part 2, 6.11 and 6.8 */
enum { TPM_PROPERTIES = 6, PERMANENT = 0x200 }; /* TPM_CAP..., TPM_PT_PERMANENT: Part 2, 6.12 and 6.13 */
enum { KEY = 0x00060040 }; /* userWithAuth, decrypt, sign: what tpm2_loadexternal and systemd give a bare public key */

/* Send a command whose reply has nothing in it. */
int finish(struct tpm *tpm)
{
    int code = tpm_send(tpm);
    return code ? code : is_done(&tpm->reply) ? 0 : TPM_BROKEN;
}

/* ---- structures ---- */

/* TPML_PCR_SELECTION of the bank of SHA-256 (Part 2, 10.9.7). */
void put_pcrs(struct packet *p, uint32_t pcrs)
{
    put(p, 4, 1);
    put(p, 2, ALG_SHA256);
    put(p, 1, 3);
    for (int i = 0; i < 3; i++) put(p, 1, pcrs >> 8 * i & 0xff);
}

/* TPMT_PUBLIC of an RSA key of 2048 bits and the exponent 65537, which 0 means (Part 2, 12.2.4). */
void put_key(struct packet *p, const uint8_t modulus[MODULUS])
{
    put(p, 2, ALG_RSA);
    put(p, 2, ALG_SHA256);
    put(p, 4, KEY);
    put_sized(p, "", 0);
    put(p, 2, ALG_NULL);
    put(p, 2, ALG_NULL);
    put(p, 2, 8 * MODULUS);
    put(p, 4, 0);
    put_sized(p, modulus, MODULUS);
}

/* A structure within a command has its size before it. */
void put_inner(struct packet *p, const struct packet *inner)
{
    p->is_bad |= inner->is_bad;
    put_sized(p, inner->bytes, inner->size);
}

/* ---- PCRs ---- */

static int bits(uint32_t set)
{
    int n = 0;
    for (; set; set &= set - 1) n++;
    return n;
}

/* The selection of a reply: which PCRs it has, all of them asked for; 0 when it is wrong or empty. */
static uint32_t get_pcrs(struct packet *r, uint32_t asked)
{
    uint32_t found = 0;
    if (get(r, 4) != 1 || get(r, 2) != ALG_SHA256) return 0;
    int size = (int)get(r, 1);
    for (int i = 0; i < size && !r->is_bad; i++) {
        uint32_t eight = (uint32_t)get(r, 1);
        if (i < 4) found |= eight << 8 * i;
        else if (eight) return 0;
    }
    return r->is_bad || found & ~asked ? 0 : found;
}

static int read_some(struct tpm *tpm, uint32_t asked, uint32_t *found, uint8_t values[MOST_PCRS][DIGEST])
{
    put_pcrs(begin(tpm, CC_PCR_READ), asked);
    int code = tpm_send(tpm);
    struct packet *r = &tpm->reply;
    if (code) return code;
    get(r, 4); /* pcrUpdateCounter */
    *found = get_pcrs(r, asked);
    if (!*found || get(r, 4) != (uint64_t)bits(*found)) return TPM_BROKEN;
    for (int pcr = 0; pcr < MOST_PCRS; pcr++) {
        if (!(*found >> pcr & 1)) continue;
        size_t size;
        const uint8_t *value = get_sized(r, &size);
        if (!value || size != DIGEST) return TPM_BROKEN;
        memcpy(values[pcr], value, DIGEST);
    }
    return is_done(r) ? 0 : TPM_BROKEN;
}

/* 22.4: the PCRs of this set, of which a TPM gives as many at a time as it likes (none: that bank is switched off). */
int pcr_read(struct tpm *tpm, uint32_t pcrs, uint8_t values[MOST_PCRS][DIGEST])
{
    uint32_t found;
    for (uint32_t left = pcrs; left; left &= ~found) {
        int code = read_some(tpm, left, &found, values);
        if (code) return code;
    }
    return 0;
}

/* 22.2 */
int pcr_extend(struct tpm *tpm, int pcr, const uint8_t digest[DIGEST])
{
    struct packet *p = begin(tpm, CC_PCR_EXTEND);
    put(p, 4, (uint64_t)pcr);
    authorize(tpm, PASSWORD);
    put(p, 4, 1);
    put(p, 2, ALG_SHA256);
    put_bytes(p, digest, DIGEST);
    return finish(tpm);
}

/* ---- the TPM ---- */

/* 16.1: a TPM may give fewer than it was asked for. */
int get_random(struct tpm *tpm, uint8_t *bytes, size_t size)
{
    for (size_t n; size; bytes += n, size -= n) {
        put(begin(tpm, CC_GET_RANDOM), 2, size < DIGEST ? size : DIGEST);
        int code = tpm_send(tpm);
        if (code) return code;
        const uint8_t *given = get_sized(&tpm->reply, &n);
        if (!given || !n || n > size || !is_done(&tpm->reply)) return TPM_BROKEN;
        memcpy(bytes, given, n);
    }
    return 0;
}

/* 30.2: which hierarchies have a password: TPMA_PERMANENT (Part 2, 8.6), owner 1, endorsement 2, lockout 4. */
int owners(struct tpm *tpm, uint32_t *set)
{
    struct packet *p = begin(tpm, CC_GET_CAPABILITY), *r = &tpm->reply;
    put(p, 4, TPM_PROPERTIES);
    put(p, 4, PERMANENT);
    put(p, 4, 1);
    int code = tpm_send(tpm);
    if (code) return code;
    get(r, 1); /* whether there is more */
    if (get(r, 4) != TPM_PROPERTIES || get(r, 4) != 1 || get(r, 4) != PERMANENT) return TPM_BROKEN;
    *set = (uint32_t)get(r, 4);
    return is_done(r) ? 0 : TPM_BROKEN;
}

/* 24.8, of a hierarchy that has no password yet */
int hierarchy_change_auth(struct tpm *tpm, uint32_t hierarchy, const uint8_t *auth, size_t size)
{
    struct packet *p = begin(tpm, CC_HIERARCHY_CHANGE_AUTH);
    put(p, 4, hierarchy);
    authorize(tpm, PASSWORD);
    put_sized(p, auth, size);
    return finish(tpm);
}

/* 24.3: no policy, whoever may have set one, takes the place of the hierarchy's password */
int clear_primary_policy(struct tpm *tpm, uint32_t hierarchy)
{
    struct packet *p = begin(tpm, CC_SET_PRIMARY_POLICY);
    put(p, 4, hierarchy);
    authorize(tpm, PASSWORD);
    put_sized(p, "", 0);
    put(p, 2, ALG_NULL);
    return finish(tpm);
}

/* 28.4 */
int flush(struct tpm *tpm, uint32_t handle)
{
    put(begin(tpm, CC_FLUSH), 4, handle);
    return finish(tpm);
}

/* ---- policies ---- */

/* 11.1: a policy session without secrets: neither salt nor bind, so what we give for a nonce means nothing. */
int start_policy(struct tpm *tpm, uint32_t *session)
{
    static const uint8_t NONCE[16];
    struct packet *p = begin(tpm, CC_START_SESSION);
    size_t size;
    put(p, 4, NO_HANDLE);
    put(p, 4, NO_HANDLE);
    put_sized(p, NONCE, sizeof NONCE);
    put_sized(p, "", 0);
    put(p, 1, POLICY_SESSION);
    put(p, 2, ALG_NULL);
    put(p, 2, ALG_SHA256);
    int code = tpm_send(tpm);
    if (code) return code;
    uint32_t handle = (uint32_t)get(&tpm->reply, 4);
    get_sized(&tpm->reply, &size);
    if (!is_done(&tpm->reply)) return TPM_BROKEN;
    *session = handle;
    return 0;
}

/* 11.2 */
int policy_restart(struct tpm *tpm, uint32_t session)
{
    put(begin(tpm, CC_POLICY_RESTART), 4, session);
    return finish(tpm);
}

/* 23.7, with the values that the PCRs have */
int policy_pcr(struct tpm *tpm, uint32_t session, uint32_t pcrs)
{
    struct packet *p = begin(tpm, CC_POLICY_PCR);
    put(p, 4, session);
    put_sized(p, "", 0);
    put_pcrs(p, pcrs);
    return finish(tpm);
}

/* 23.9: that the number in an index, which anybody may read, is not above ours */
int policy_nv(struct tpm *tpm, uint32_t session, uint32_t index, const uint8_t operand[8])
{
    struct packet *p = begin(tpm, CC_POLICY_NV);
    put(p, 4, index);
    put(p, 4, index);
    put(p, 4, session);
    authorize(tpm, PASSWORD);
    put_sized(p, operand, 8);
    put(p, 2, 0);
    put(p, 2, LOWER_OR_EQUAL);
    return finish(tpm);
}

/* 12.3: the public half of a key, for the owner's hierarchy: a ticket of none would not be worth anything */
int load_external(struct tpm *tpm, const uint8_t modulus[MODULUS], uint32_t *key)
{
    struct packet public = {.size = 0}, *p = begin(tpm, CC_LOAD_EXTERNAL);
    size_t size;
    put_key(&public, modulus);
    put_sized(p, "", 0);
    put_inner(p, &public);
    put(p, 4, OWNER);
    int code = tpm_send(tpm);
    if (code) return code;
    uint32_t handle = (uint32_t)get(&tpm->reply, 4);
    get_sized(&tpm->reply, &size);
    if (!is_done(&tpm->reply)) return TPM_BROKEN;
    *key = handle;
    return 0;
}

/* 20.1: PKCS#1 1.5 over a digest; what it gives is the TPM's word for it */
int verify_signature(struct tpm *tpm, uint32_t key, const uint8_t digest[DIGEST], const uint8_t signature[MODULUS],
                     struct ticket *ticket)
{
    struct packet *p = begin(tpm, CC_VERIFY_SIGNATURE), *r = &tpm->reply;
    size_t size;
    put(p, 4, key);
    put_sized(p, digest, DIGEST);
    put(p, 2, ALG_RSASSA);
    put(p, 2, ALG_SHA256);
    put_sized(p, signature, MODULUS);
    int code = tpm_send(tpm);
    if (code) return code;
    size_t begin = r->at;
    get(r, 6); /* tag and hierarchy */
    get_sized(r, &size);
    if (!is_done(r) || r->size - begin > sizeof ticket->bytes) return TPM_BROKEN;
    ticket->size = r->size - begin;
    memcpy(ticket->bytes, r->bytes + begin, ticket->size);
    return 0;
}

/* 23.16: what the session holds so far is what the key signed, and is forgotten for the name of the key */
int policy_authorize(struct tpm *tpm, uint32_t session, const uint8_t approved[DIGEST], const uint8_t name[2 + DIGEST],
                     const struct ticket *ticket)
{
    struct packet *p = begin(tpm, CC_POLICY_AUTHORIZE);
    put(p, 4, session);
    put_sized(p, approved, DIGEST);
    put_sized(p, "", 0);
    put_sized(p, name, 2 + DIGEST);
    put_bytes(p, ticket->bytes, ticket->size);
    return finish(tpm);
}
