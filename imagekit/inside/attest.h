/* What the files of imagekit-attest share; attestor.c says what it is. */

#include <stddef.h>

enum {
    NONCE = 32, /* bytes */
    LARGEST_LOG = 262144, /* bytes of the firmware's event log */
    LARGEST_REPLY = 2 * LARGEST_LOG + 8192,
}; /* imagekit/attestation.py refuses more */

/* ---- attestor.c ---- */

int open_tpm(void); /* -1 and errno when there is none */

/* ---- attest.c ---- */

const char *prepare_attestation(void); /* what went wrong, or NULL */
const char *attestation(const char *nonce, const char **text, size_t *size);
int is_nonce(const char *hex, size_t size);
int attest(const char *nonce);

/* ---- serve.c ---- */

int serve(const char *port);
