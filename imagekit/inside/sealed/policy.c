/* When the TPM gives the key: the policies, computed here, and satisfied there.

   policy signed: the maker of the image signed the approved policy, which is PCR 11 (what systemd's stub measures of
   the UKI) and that the generation in the TPM is not above the image's. An image that is signed later is as good, one
   of a lower generation is not. Then come the other PCRs, as they were at the first boot. policy exact: all PCRs, as
   they were at the first boot.

   imagekit/tpm.py computes the same in Python; "Part 3" has the formulas, 23.4 what they have in common. */

#include "sealed.h"

enum { CC_POLICY_NV = 0x149, CC_POLICY_AUTHORIZE = 0x16a, CC_POLICY_PCR = 0x17f, LOWER_OR_EQUAL = 9 };
enum {
    OWNERWRITE = 1 << 1,
    AUTHREAD = 1 << 18,
    NO_DA = 1 << 25,
    WRITTEN = 1 << 29,
}; /* TPMA_NV: Part 2, 13.4 */

/* ---- computing ---- */

static void hash(const struct packet *p, uint8_t digest[DIGEST])
{
    struct sha256 s;
    sha256_begin(&s);
    sha256_add(&s, p->bytes, p->size);
    sha256_end(&s, digest);
}

static void extend_by_pcrs(const struct policy *policy, uint32_t pcrs, uint8_t digest[DIGEST])
{
    struct packet p = {.size = 0}, values = {.size = 0};
    uint8_t of_values[DIGEST];
    for (int pcr = 0; pcr < MOST_PCRS; pcr++)
        if (pcrs >> pcr & 1) put_bytes(&values, policy->values[pcr], DIGEST);
    hash(&values, of_values);
    put_bytes(&p, digest, DIGEST);
    put(&p, 4, CC_POLICY_PCR);
    put_pcrs(&p, pcrs);
    put_bytes(&p, of_values, DIGEST);
    hash(&p, digest);
}

/* The index of the generation. Its name is a part of the approved policy, so it cannot have a policy with values of
   this machine: and one without them would let any system write it that brings PCR 11 to what was signed. So nobody but
   the owner does, whose password lies with the key. */
struct nv generation_index(void)
{
    return (struct nv){GENERATION_INDEX, OWNERWRITE | AUTHREAD | NO_DA | WRITTEN, {0}, 0, 8};
}

static void extend_by_generation(const struct policy *policy, uint8_t digest[DIGEST])
{
    struct packet p = {.size = 0}, arguments = {.size = 0}, public = {.size = 0};
    struct nv nv = generation_index();
    uint8_t of_arguments[DIGEST], of_public[DIGEST];
    put_bytes(&arguments, policy->generation, sizeof policy->generation);
    put(&arguments, 2, 0);
    put(&arguments, 2, LOWER_OR_EQUAL);
    hash(&arguments, of_arguments);
    put_nv(&public, &nv);
    hash(&public, of_public);
    put_bytes(&p, digest, DIGEST);
    put(&p, 4, CC_POLICY_NV);
    put_bytes(&p, of_arguments, DIGEST);
    put(&p, 2, ALG_SHA256);
    put_bytes(&p, of_public, DIGEST);
    hash(&p, digest);
}

static void compute_name(const struct seal *seal, uint8_t name[2 + DIGEST])
{
    struct packet public = {.size = 0};
    put_key(&public, seal->modulus);
    name[0] = ALG_SHA256 >> 8;
    name[1] = ALG_SHA256 & 0xff;
    hash(&public, name + 2);
}

/* What a session holds after PolicyAuthorize, from nothing and again with an empty policyRef. */
static void compute_authorized(const uint8_t name[2 + DIGEST], uint8_t digest[DIGEST])
{
    struct packet p = {.size = DIGEST}, again = {.size = 0};
    put(&p, 4, CC_POLICY_AUTHORIZE);
    put_bytes(&p, name, 2 + DIGEST);
    hash(&p, digest);
    put_bytes(&again, digest, DIGEST);
    hash(&again, digest);
}

/* Who may read and write the key, and what the maker has to have signed for that. */
void compute_policies(const struct seal *seal, struct policy *policy)
{
    for (int i = 0; i < 8; i++) policy->generation[i] = (uint8_t)(seal->generation >> (56 - 8 * i));
    memset(policy->approved, 0, DIGEST);
    memset(policy->read, 0, DIGEST);
    uint32_t others = seal->is_signed ? seal->pcrs & ~(1U << SIGNED_PCR) : seal->pcrs;
    if (seal->is_signed) {
        compute_name(seal, policy->name);
        compute_authorized(policy->name, policy->read);
        extend_by_pcrs(policy, 1U << SIGNED_PCR, policy->approved);
        extend_by_generation(policy, policy->approved);
    }
    if (others) extend_by_pcrs(policy, others, policy->read);
}

/* ---- the signature ---- */

/* The bytes of base64 (RFC 4648, section 4), exactly so many; -1 for anything else. */
static int from_base64(const char *text, size_t length, uint8_t *bytes, size_t size)
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t held = 0;
    size_t have = 0, n = 0;
    if (length != (size + 2) / 3 * 4) return -1;
    for (; length && text[length - 1] == '='; length--) {}
    for (size_t i = 0; i < length; i++) {
        const char *found = text[i] ? strchr(DIGITS, text[i]) : NULL;
        if (!found) return -1;
        held = held << 6 | (uint32_t)(found - DIGITS);
        if ((have += 6) < 8) continue;
        if (n == size) return -1;
        bytes[n++] = (uint8_t)(held >> (have -= 8));
    }
    return n == size ? 0 : -1;
}

/* The string that follows a name, from there on: where it begins, or NULL. */
static const char *string_after(const char *text, const char *name, size_t *length)
{
    const char *found = strstr(text, name);
    if (!found) return NULL;
    found += strlen(name);
    found += strspn(found, " \t\r\n:");
    if (*found++ != '"') return NULL;
    *length = strcspn(found, "\"");
    return found[*length] ? found : NULL;
}

/* Find the signature of the policy that this state has. Which one is meant is told by the policy, and whether it is
   good by the TPM: so it does not matter here what else the file holds. */
const char *find_signature(struct policy *policy)
{
    static char text[65536];
    uint8_t signed_policy[DIGEST];
    size_t length;
    int file = open(policy->signatures, O_RDONLY | O_CLOEXEC);
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    if (size <= 0) return "signature";
    for (const char *at = text; (at = string_after(at, "\"pol\"", &length));) {
        if (from_hex(at, length, signed_policy, DIGEST) || memcmp(signed_policy, policy->approved, DIGEST)) continue;
        at = string_after(at, "\"sig\"", &length);
        if (!at || from_base64(at, length, policy->signature, MODULUS)) return "signature";
        policy->has_signature = 1;
        return NULL;
    }
    return "state: PCR 11";
}

/* ---- satisfying ---- */

static int take_ticket(const struct seal *seal, struct policy *policy)
{
    struct sha256 s;
    uint8_t digest[DIGEST];
    uint32_t key;
    int code = load_external(&policy->tpm, seal->modulus, &key);
    if (code) return code;
    sha256_begin(&s);
    sha256_add(&s, policy->approved, DIGEST);
    sha256_end(&s, digest);
    code = verify_signature(&policy->tpm, key, digest, policy->signature, &policy->ticket);
    policy->has_ticket = !code;
    int flushed = flush(&policy->tpm, key);
    return code ? code : flushed;
}

static const char *satisfy_signed(const struct seal *seal, struct policy *policy)
{
    struct tpm *tpm = &policy->tpm;
    int code = policy_pcr(tpm, policy->session, 1U << SIGNED_PCR);
    if (code) return tpm_words(code);
    code = policy_nv(tpm, policy->session, GENERATION_INDEX, policy->generation);
    if (code == TPM_POLICY || code == TPM_HANDLE || code == TPM_NV_UNINITIALIZED) return "generation";
    if (!code && !policy->has_ticket) code = take_ticket(seal, policy);
    if (code == TPM_SIGNATURE) return "signature";
    if (!code) code = policy_authorize(tpm, policy->session, policy->approved, policy->name, &policy->ticket);
    return code ? tpm_words(code) : NULL;
}

/* Bring the session to where it may read and write the key: what is missing for that, or NULL. A session serves one
   command, and is satisfied anew for the next, from the beginning, wherever the last time ended. */
const char *satisfy(const struct seal *seal, struct policy *policy)
{
    uint32_t others = seal->is_signed ? seal->pcrs & ~(1U << SIGNED_PCR) : seal->pcrs;
    int code = policy->was_begun++ ? policy_restart(&policy->tpm, policy->session) : 0;
    if (code) return tpm_words(code);
    const char *wrong = seal->is_signed ? satisfy_signed(seal, policy) : NULL;
    if (wrong || !others) return wrong;
    code = policy_pcr(&policy->tpm, policy->session, others);
    return code ? tpm_words(code) : NULL;
}
