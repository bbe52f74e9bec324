/* SHA-256 by the instructions that processors have for it: SHA-NI of x86_64, the Cryptographic Extension of ARMv8. */

#include "../sha256.h"

enum { FEW = 64 };

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>

static int can(void)
{
    static _Atomic int known; /* -1: it cannot; 0: not asked yet */
    unsigned a, b, c, d;
    if (!known) {
        int has_sha = __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;
        known = has_sha && __get_cpuid(1, &a, &b, &c, &d) && c >> 19 & 1 ? 1 : -1; /* and SSE4.1 */
    }
    return known > 0;
}

/* Intel SDM, volume 2, SHA256RNDS2: two rounds, of the state as ABEF and CDGH. */
__attribute__((target("sha,sse4.1,ssse3"))) static void digest(uint32_t *state, const uint8_t *p, size_t blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128((const void *)state), 0xb1), w[4];
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; blocks; blocks--, p += 64) {
        const __m128i one = abef, two = cdgh;
        for (int i = 0; i < 4; i++) w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(p + 16 * i)), swap);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            __m128i k = _mm_add_epi32(w[i % 4], _mm_loadu_si128((const void *)(SHA256_ROUNDS + 4 * i)));
            __m128i next = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0e));
            next = _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]), next);
            w[i % 4] = _mm_sha256msg2_epu32(next, w[(i + 3) % 4]);
        }
        abef = _mm_add_epi32(abef, one);
        cdgh = _mm_add_epi32(cdgh, two);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((void *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((void *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#elif defined __aarch64__
#include <arm_neon.h>
#include <sys/auxv.h>

static int can(void) { return getauxval(AT_HWCAP) >> 6 & 1; } /* HWCAP_SHA2 of the kernel's asm/hwcap.h */

/* Arm ARM, SHA256H: four rounds. */
__attribute__((target("sha2"))) static void digest(uint32_t *state, const uint8_t *p, size_t blocks)
{
    uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4), w[4];
    for (; blocks; blocks--, p += 64) {
        const uint32x4_t one = abcd, two = efgh;
        for (int i = 0; i < 4; i++) w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(p + 16 * i)));
#pragma unroll
        for (int i = 0; i < 16; i++) {
            uint32x4_t k = vaddq_u32(w[i % 4], vld1q_u32(SHA256_ROUNDS + 4 * i)), before = abcd;
            abcd = vsha256hq_u32(abcd, efgh, k);
            efgh = vsha256h2q_u32(efgh, before, k);
            w[i % 4] = vsha256su1q_u32(vsha256su0q_u32(w[i % 4], w[(i + 1) % 4]), w[(i + 2) % 4], w[(i + 3) % 4]);
        }
        abcd = vaddq_u32(abcd, one);
        efgh = vaddq_u32(efgh, two);
    }
    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}

#else
static int can(void) { return 0; }
static void digest(uint32_t *state, const uint8_t *p, size_t blocks) { (void)state, (void)p, (void)blocks; }
#endif

/* Of little it is not even asked what the processor can: that takes as long as 20 blocks in a virtual machine. */
int sha256_by_cpu(uint32_t *state, const uint8_t *p, size_t blocks)
{
    if (blocks < FEW || !can()) return 0;
    digest(state, p, blocks);
    return 1;
}
