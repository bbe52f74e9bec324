/* ed25519 of libsodium, and what it wants of the rest of that. Nothing is secret where only signatures are verified, so
   nothing here has to take the same time for all bytes. */

#include "crypto_hash_sha512.h"
/* the order counts: the others use what this declares */
#include "crypto_sign/ed25519/ref10/sign_ed25519_ref10.h"

#include "crypto_core/ed25519/ref10/ed25519_ref10.c"
#include "crypto_hash/sha512/cp/hash_sha512_cp.c"
#include "crypto_sign/ed25519/ref10/open.c"
#include "crypto_verify/sodium/verify.c"

int sodium_memcmp(const void *a, const void *b, size_t size) { return memcmp(a, b, size) ? -1 : 0; }

void sodium_memzero(void *bytes, size_t size) { memset(bytes, 0, size); }

int sodium_is_zero(const unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i]) return 0;
    return 1;
}

/* Pure ed25519 hashes nothing before the signature; only ed25519ph does (RFC 8032, 2). */
void _crypto_sign_ed25519_ref10_hinit(crypto_hash_sha512_state *state, int prehashed)
{
    (void)prehashed;
    crypto_hash_sha512_init(state);
}
