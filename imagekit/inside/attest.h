/* What the files of imagekit-attest share; attestor.c says what it is. */

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    NONCE = 32, /* bytes */
    LARGEST_LOG = 262144, /* bytes of the firmware's event log */
    LARGEST_REPLY = 2 * LARGEST_LOG + 8192,
}; /* imagekit/attestation.py refuses more */

/* ---- attestor.c ---- */

int open_tpm(void);
ssize_t ask_tpm(int tpm, const uint8_t *command, size_t size, uint8_t *answer, size_t room);

/* ---- attest.c ---- */

const char *prepare_attestation(void); /* what went wrong, or NULL */
const char *attestation(const char *nonce, const char **text, size_t *size);
int is_nonce(const char *hex, size_t size);
int attest(const char *nonce);

/* ---- serve.c ---- */

int serve(const char *port);
