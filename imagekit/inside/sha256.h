/* SHA-256; sha256.c says more. */

#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 { /* of one thing, so far */
    uint32_t state[8];
    uint64_t total;
    uint8_t block[64];
};

void sha256_begin(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *bytes, size_t size);
void sha256_end(struct sha256 *s, uint8_t digest[32]);
void sha256_end_hex(struct sha256 *s, char hex[65]);

extern const uint32_t SHA256_ROUNDS[64];

int sha256_by_cpu(uint32_t state[8], const uint8_t *blocks, size_t count); /* launcher/sha256_by_cpu.c; 0: it cannot */

#endif
