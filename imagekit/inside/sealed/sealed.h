/* What the files of the program `sealed` share; sealed.c says what it is. */

#include "../boot.h"
#include "../sha256.h"
#include "tpm.h"

#define NEW_ROOT "/root" /* where root.c mounts the root */

enum { VOLUME_KEY = 64, SIGNED_PCR = 11, HEADERS = 294912, OFFSET = 1048576 }; /* bytes; of a PCR; bytes (luks.c) */

/* ---- settings.c ---- */

struct seal { /* /etc/imagekit/seal */
    char image[256], disk[40], mount[256];
    uint32_t pcrs;
    int is_signed, has_recovery, has_secure_boot;
    uint64_t generation;
    uint8_t modulus[MODULUS];
};

const char *read_settings(const char *path, struct seal *seal);
int from_hex(const char *text, size_t length, uint8_t *bytes, size_t size);
const char *to_hex(const uint8_t *bytes, size_t size, char *text);

/* ---- policy.c ---- */

enum { KEY_INDEX = 0x01800a00, GENERATION_INDEX, VALUES_INDEX }; /* NV indices of owners: Part 2, 7.5; RM 2.2 */

struct policy { /* of this image, in the state that this machine is in */
    struct tpm tpm;
    const char *signatures;            /* where they lie */
    uint8_t values[MOST_PCRS][DIGEST]; /* of the PCRs */
    uint8_t name[2 + DIGEST];          /* of the key that signs */
    uint8_t approved[DIGEST], read[DIGEST];
    uint8_t generation[8], signature[MODULUS];
    int has_signature, has_ticket, was_begun, is_behind; /* is_behind: an earlier generation was the last */
    struct ticket ticket;
    uint32_t session;
};

struct nv generation_index(void);
void compute_policies(const struct seal *seal, struct policy *policy);
const char *find_signature(struct policy *policy);
const char *satisfy(const struct seal *seal, struct policy *policy);

/* ---- secret.c ---- */

struct secret { /* what KEY_INDEX holds */
    uint8_t key[VOLUME_KEY], headers[DIGEST], disk[DIGEST];
};

enum state { EMPTY, BEGUN, SEALED }; /* KEY_INDEX is not there; was never written; holds a secret */

const char *ask_state(struct policy *policy, enum state *state);
const char *prepare_indices(const struct seal *seal, struct policy *policy);
const char *keep_secret(const struct seal *seal, struct policy *policy, const struct secret *secret);
const char *fetch_secret(const struct seal *seal, struct policy *policy, struct secret *secret);
const char *raise_generation(struct policy *policy, const struct secret *secret);
const char *disown(struct policy *policy, const struct secret *secret);
const char *leave(const struct seal *seal, struct policy *policy, const char *wrong);

/* ---- mapper.c ---- */

struct target { /* of device-mapper: a device of one target */
    const char *name, *type, *parameters;
    uint64_t sectors;
    int is_read_only;
};

const char *map_device(const struct target *target, char path[32]);
void unmap_device(const char *name);

struct crypt { /* aes-xts-plain64 over a part of a device */
    const char *name, *device;
    uint64_t start, sectors;
    const uint8_t *key;
};

const char *map_crypt(const struct crypt *crypt, char path[32]);

/* ---- luks.c ---- */

struct headers { /* of LUKS2, as they lie on a disk */
    int is_luks;
    char uuid[36]; /* any bytes */
    uint8_t digest[DIGEST];
};

const char *write_luks(const char *device, const uint8_t key[VOLUME_KEY], const char *passphrase);
const char *read_headers(const char *device, struct headers *headers);

/* ---- verity.c ---- */

const char *open_verified(const char *wanted, struct place *place);

/* ---- seal.c ---- */

#define SEAL "/etc/imagekit/seal"

const char *open_sealed(const struct place *root, const char *below);
