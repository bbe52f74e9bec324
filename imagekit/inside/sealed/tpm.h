/* A TPM 2.0, as far as a sealed disk and a quote need one; tpm.c, commands.c and nv.c say more.

   "Part 2" and "Part 3" are those of the Trusted Platform Module Library, family 2.0, revision 1.59. */

#ifndef TPM_H
#define TPM_H

#include <stddef.h>
#include <stdint.h>

enum { LARGEST_PACKET = 4096, DIGEST = 32, MODULUS = 256, MOST_PCRS = 16 }; /* bytes, but for the last */

struct packet { /* a command that is put together, or a reply that is taken apart */
    uint8_t bytes[LARGEST_PACKET];
    size_t size, at;
    int is_bad; /* something did not fit, or was not there: stays so */
};

struct tpm {
    int file;
    struct packet command, reply;
    uint32_t *made; /* where the handle goes of what an authorized command makes; begin() says nowhere */
};

enum { /* Part 2, 6.6: what a TPM answers, less the number of the handle, parameter or session that it means */
    TPM_BROKEN = 0x7fffffff, /* our own: no reply, or not the reply of a TPM */
    TPM_HANDLE = 0x8b,
    TPM_BAD_AUTH = 0xa2,
    TPM_AUTH_FAIL = 0x8e,
    TPM_SIGNATURE = 0x9b,
    TPM_POLICY_FAIL = 0x9d,
    TPM_POLICY = 0x126,
    TPM_NV_LOCKED = 0x148,
    TPM_NV_UNINITIALIZED = 0x14a,
};

enum { /* Part 2, 6.3, 6.9, 7.4 and 13.4 */
    ALG_RSA = 0x0001,
    ALG_SHA256 = 0x000b,
    ALG_NULL = 0x0010,
    ALG_RSASSA = 0x0014,
    OWNER = 0x40000001,
    NO_HANDLE = 0x40000007,
    PASSWORD = 0x40000009,
    LOCKOUT = 0x4000000a,
    ENDORSEMENT = 0x4000000b,
};

/* ---- tpm.c ---- */

int tpm_open(struct tpm *tpm);
void put(struct packet *packet, int bytes, uint64_t value);
void put_bytes(struct packet *packet, const void *bytes, size_t size);
void put_sized(struct packet *packet, const void *bytes, size_t size);
uint64_t get(struct packet *packet, int bytes);
const uint8_t *get_bytes(struct packet *packet, size_t size);
const uint8_t *get_sized(struct packet *packet, size_t *size);
int is_done(const struct packet *packet);
struct packet *begin(struct tpm *tpm, uint32_t code);
void authorize(struct tpm *tpm, uint32_t session);
void authorize_with(struct tpm *tpm, const uint8_t password[DIGEST]);
int tpm_send(struct tpm *tpm);
const char *tpm_words(int code);

/* ---- commands.c ---- */

struct nv { /* TPMS_NV_PUBLIC (Part 2, 13.6) */
    uint32_t index, attributes;
    uint8_t policy[DIGEST];
    size_t policy_size, size;
};

struct ticket { /* TPMT_TK_VERIFIED (Part 2, 10.7.4), as it came */
    uint8_t bytes[2 + 4 + 2 + 64];
    size_t size;
};

int finish(struct tpm *tpm);
int pcr_read(struct tpm *tpm, uint32_t pcrs, uint8_t values[MOST_PCRS][DIGEST]);
int pcr_extend(struct tpm *tpm, int pcr, const uint8_t digest[DIGEST]);
int get_random(struct tpm *tpm, uint8_t *bytes, size_t size);
int owners(struct tpm *tpm, uint32_t *set);
int clear_primary_policy(struct tpm *tpm, uint32_t hierarchy);
int hierarchy_change_auth(struct tpm *tpm, uint32_t hierarchy, const uint8_t *auth, size_t size);
int start_policy(struct tpm *tpm, uint32_t *session);
int policy_restart(struct tpm *tpm, uint32_t session);
int policy_pcr(struct tpm *tpm, uint32_t session, uint32_t pcrs);
int policy_nv(struct tpm *tpm, uint32_t session, uint32_t index, const uint8_t operand[8]);
int policy_authorize(struct tpm *tpm, uint32_t session, const uint8_t approved[DIGEST], const uint8_t name[2 + DIGEST],
                     const struct ticket *ticket);
int load_external(struct tpm *tpm, const uint8_t modulus[MODULUS], uint32_t *key);
int verify_signature(struct tpm *tpm, uint32_t key, const uint8_t digest[DIGEST], const uint8_t signature[MODULUS],
                     struct ticket *ticket);
int flush(struct tpm *tpm, uint32_t handle);
void put_pcrs(struct packet *packet, uint32_t pcrs);
void put_key(struct packet *packet, const uint8_t modulus[MODULUS]);
void put_inner(struct packet *packet, const struct packet *inner);

/* ---- nv.c ---- */

void put_nv(struct packet *packet, const struct nv *nv);
int nv_read_public(struct tpm *tpm, uint32_t index, struct nv *nv);
int nv_define(struct tpm *tpm, const struct nv *nv);
int nv_undefine(struct tpm *tpm, uint32_t index);
int nv_write(struct tpm *tpm, uint32_t by, uint32_t index, uint32_t session, const void *bytes, size_t size);
int nv_write_owned(struct tpm *tpm, uint32_t index, const uint8_t password[DIGEST], const void *bytes, size_t size);
int nv_read(struct tpm *tpm, uint32_t index, uint32_t session, void *bytes, size_t size);
int nv_read_lock(struct tpm *tpm, uint32_t index, uint32_t session);
int nv_write_lock(struct tpm *tpm, uint32_t index, uint32_t session);

#endif
