/* The secret in the TPM: made at the first boot, fetched at every other one, and out of reach when the initrd is left.

   Three indices of NV (Part 2, 13). KEY_INDEX holds the secret: who satisfies the policy reads it, and writes it, once.
   Not even the owner of the TPM writes it, so that what is found there was put there by an image that may open it:
   somebody who clears the TPM can define the index again, but cannot fill it. GENERATION_INDEX holds the lowest
   generation of an image that may open it; VALUES_INDEX the PCRs of the first boot, by which a refusal tells which of
   them differ. Then the TPM gets passwords: nobody removes the indices without clearing it. The owner's is made of the
   key, so who may open the disk may raise the generation, and nobody else changes it; the other is nobody's. */

#include "sealed.h"
#include <sys/random.h>

enum {
    OWNERWRITE = 1 << 1,
    POLICYWRITE = 1 << 3,
    WRITELOCKED = 1 << 11,
    WRITEDEFINE = 1 << 13,
    AUTHREAD = 1 << 18,
    POLICYREAD = 1 << 19,
    NO_DA = 1 << 25,
    READLOCKED = 1 << 28,
    WRITTEN = 1 << 29,
}; /* TPMA_NV: Part 2, 13.4 */

#define READ_STCLEAR (1U << 31)

enum { OWNED = 1, LOCKED_OUT = 4 }; /* TPMA_PERMANENT: Part 2, 8.6 */

static struct nv key_index(const struct policy *policy)
{
    struct nv nv = {KEY_INDEX, POLICYWRITE | WRITEDEFINE | POLICYREAD | NO_DA | READ_STCLEAR, {0}, DIGEST,
                    sizeof(struct secret)};
    memcpy(nv.policy, policy->read, DIGEST);
    return nv;
}

/* The values of the PCRs that the policy has, in a row; how many bytes they are. */
static size_t gather_values(const struct seal *seal, const struct policy *policy, uint8_t values[MOST_PCRS * DIGEST])
{
    size_t size = 0;
    for (int pcr = 0; pcr < MOST_PCRS; pcr++) {
        if (!(seal->pcrs >> pcr & 1)) continue;
        memcpy(values + size, policy->values[pcr], DIGEST);
        size += DIGEST;
    }
    return size;
}

/* ---- the first boot ---- */

/* Whether the TPM holds a secret, and began to. */
const char *ask_state(struct policy *policy, enum state *state)
{
    struct nv nv;
    int code = nv_read_public(&policy->tpm, KEY_INDEX, &nv);
    if (code && code != TPM_HANDLE) return tpm_words(code);
    *state = code ? EMPTY : nv.attributes & WRITTEN ? SEALED : BEGUN;
    return NULL;
}

static const char *words_of(int code)
{
    return code == TPM_BAD_AUTH || code == TPM_AUTH_FAIL ? "the TPM has an owner" : tpm_words(code);
}

static int define_anew(struct tpm *tpm, const struct nv *nv)
{
    int code = nv_undefine(tpm, nv->index);
    return code && code != TPM_HANDLE ? code : nv_define(tpm, nv);
}

/* Define the indices, whatever is left of an attempt that was cut off, and fill all but the secret. Who had the TPM
   before may have left a policy, by which he would stay its owner whatever the password is. */
const char *prepare_indices(const struct seal *seal, struct policy *policy)
{
    uint8_t bytes[MOST_PCRS * DIGEST];
    struct tpm *tpm = &policy->tpm;
    struct nv key = key_index(policy), generation = generation_index(), values = {
        VALUES_INDEX, OWNERWRITE | AUTHREAD | NO_DA, {0}, 0, gather_values(seal, policy, bytes)};
    generation.attributes &= ~(uint32_t)WRITTEN;
    int code = clear_primary_policy(tpm, OWNER);
    if (!code) code = clear_primary_policy(tpm, LOCKOUT);
    if (!code) code = define_anew(tpm, &generation);
    if (!code) code = nv_write(tpm, OWNER, GENERATION_INDEX, PASSWORD, policy->generation, 8);
    if (!code) code = define_anew(tpm, &values);
    if (!code) code = nv_write(tpm, OWNER, VALUES_INDEX, PASSWORD, bytes, values.size);
    if (!code) code = define_anew(tpm, &key);
    return code ? words_of(code) : NULL;
}

static const char *lock_writing(const struct seal *seal, struct policy *policy)
{
    const char *wrong = satisfy(seal, policy);
    if (wrong) return wrong;
    int code = nv_write_lock(&policy->tpm, KEY_INDEX, policy->session);
    return code ? tpm_words(code) : NULL;
}

/* Put the secret into its index. From then on it is the key of the disk. */
const char *keep_secret(const struct seal *seal, struct policy *policy, const struct secret *secret)
{
    const char *wrong = satisfy(seal, policy);
    if (wrong) return wrong;
    int code = nv_write(&policy->tpm, KEY_INDEX, KEY_INDEX, policy->session, secret, sizeof *secret);
    return code ? tpm_words(code) : lock_writing(seal, policy);
}

/* The last byte of a password is none that is zero, which a TPM would take off (Part 1, 19.6.4.3). */
static void make_owner(const struct secret *secret, uint8_t password[DIGEST])
{
    struct sha256 s;
    sha256_begin(&s);
    sha256_add(&s, "imagekit owner", sizeof "imagekit owner");
    sha256_add(&s, secret->key, sizeof secret->key);
    sha256_end(&s, password);
    password[DIGEST - 1] |= 1;
}

static int set_owner(struct tpm *tpm, const struct secret *secret)
{
    uint8_t password[DIGEST];
    make_owner(secret, password);
    int code = hierarchy_change_auth(tpm, OWNER, password, sizeof password);
    explicit_bzero(password, sizeof password);
    return code;
}

static int set_lockout(struct tpm *tpm)
{
    uint8_t password[DIGEST];
    if (getrandom(password, sizeof password, 0) != sizeof password) return TPM_BROKEN;
    int code = hierarchy_change_auth(tpm, LOCKOUT, password, sizeof password);
    explicit_bzero(password, sizeof password);
    return code;
}

/* Give the owner a password that only who has the key knows, and lockout one that nobody knows, unless they have. */
const char *disown(struct policy *policy, const struct secret *secret)
{
    uint32_t set;
    int code = owners(&policy->tpm, &set);
    if (!code && !(set & OWNED)) code = set_owner(&policy->tpm, secret);
    if (!code && !(set & LOCKED_OUT)) code = set_lockout(&policy->tpm);
    return code ? tpm_words(code) : NULL;
}

/* ---- every boot ---- */

/* "state: PCR 7,11": those that are not as at the first boot. PCR 11 is another one after each update: it is told when
   nobody signed what it is. */
static const char *differing(const struct seal *seal, struct policy *policy)
{
    static char words[64];
    uint8_t before[MOST_PCRS * DIGEST], now[MOST_PCRS * DIGEST];
    size_t size = gather_values(seal, policy, now), at = 0, n = 0;
    if (nv_read(&policy->tpm, VALUES_INDEX, PASSWORD, before, size)) return "policy";
    for (int pcr = 0; pcr < MOST_PCRS; pcr++) {
        if (!(seal->pcrs >> pcr & 1)) continue;
        int differs = memcmp(before + at, now + at, DIGEST);
        if (pcr == SIGNED_PCR && seal->is_signed) differs = !policy->has_signature;
        if (differs) n += (size_t)snprintf(words + n, sizeof words - n, "%s%d", n ? "," : "state: PCR ", pcr);
        at += DIGEST;
    }
    return n ? words : "policy";
}

/* Whether the index is as this image would define it in this state: what differs is told, and what somebody else
   defined is not read. */
static const char *check_index(const struct seal *seal, struct policy *policy, int *is_open)
{
    struct nv nv, wanted = key_index(policy);
    int code = nv_read_public(&policy->tpm, KEY_INDEX, &nv);
    if (code) return tpm_words(code);
    *is_open = !(nv.attributes & WRITELOCKED);
    if (nv.attributes & READLOCKED) return "the TPM was not reset";
    nv.attributes &= ~(uint32_t)(WRITTEN | WRITELOCKED);
    if (nv.attributes != wanted.attributes || nv.size != wanted.size || nv.policy_size != DIGEST) return "policy";
    return memcmp(nv.policy, wanted.policy, DIGEST) ? differing(seal, policy) : NULL;
}

/* Whether the TPM has seen no later generation than the image's; an earlier one is noted, to be raised. */
static const char *check_generation(struct policy *policy)
{
    uint8_t generation[8];
    int code = nv_read(&policy->tpm, GENERATION_INDEX, PASSWORD, generation, 8);
    if (code) return code == TPM_HANDLE || code == TPM_NV_UNINITIALIZED ? "generation" : tpm_words(code);
    int order = memcmp(generation, policy->generation, 8);
    policy->is_behind = order < 0;
    return order > 0 ? "generation" : NULL;
}

/* The secret; what is in the way of it, or NULL. */
const char *fetch_secret(const struct seal *seal, struct policy *policy, struct secret *secret)
{
    int is_open = 0, code = 0;
    const char *missing = seal->is_signed && !policy->has_signature ? find_signature(policy) : NULL;
    const char *wrong = check_index(seal, policy, &is_open);
    if (wrong || missing) return wrong ? wrong : missing;
    wrong = check_generation(policy);
    if (!wrong) wrong = satisfy(seal, policy);
    if (!wrong) code = nv_read(&policy->tpm, KEY_INDEX, policy->session, secret, sizeof *secret);
    if (code) wrong = tpm_words(code);
    return !wrong && is_open ? lock_writing(seal, policy) : wrong; /* the first boot was cut off before that */
}

/* Let no image of a lower generation open it any more. */
const char *raise_generation(struct policy *policy, const struct secret *secret)
{
    uint8_t password[DIGEST];
    make_owner(secret, password);
    int code = nv_write_owned(&policy->tpm, GENERATION_INDEX, password, policy->generation, 8);
    explicit_bzero(password, sizeof password);
    return code ? tpm_words(code) : NULL;
}

static const char *lock_reading(const struct seal *seal, struct policy *policy)
{
    const char *wrong = satisfy(seal, policy);
    int code = wrong ? 0 : nv_read_lock(&policy->tpm, KEY_INDEX, policy->session);
    int flushed = flush(&policy->tpm, policy->session);
    if (wrong) return wrong;
    return code || flushed ? tpm_words(code ? code : flushed) : NULL;
}

/* Put the secret out of reach until the TPM is reset, by two ways: the index is locked, and PCR 11 is not any more what
   was signed: it gets what systemd-pcrphase(8) extends it by at this point. `wrong` is what happened before: where
   nothing did, nothing of this may fail; else what can be done is, and `wrong` stays. */
const char *leave(const struct seal *seal, struct policy *policy, const char *wrong)
{
    static const char WORDS[] = "leave-initrd";
    uint8_t digest[DIGEST];
    struct sha256 s;
    const char *open = policy->session ? lock_reading(seal, policy) : NULL;
    sha256_begin(&s);
    sha256_add(&s, WORDS, sizeof WORDS - 1);
    sha256_end(&s, digest);
    int code = pcr_extend(&policy->tpm, SIGNED_PCR, digest);
    if (wrong || open) return wrong ? wrong : open;
    return code ? tpm_words(code) : NULL;
}
