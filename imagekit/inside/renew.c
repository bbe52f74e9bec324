/* Renewal: a machine that was restored from a saved one gets the time, randomness and a nonce of its own. */

#include "agent.h"
#include <linux/random.h>
#include <sys/ioctl.h>
#include <time.h>

/* Mix the host's entropy in and have the generator start from it at once: restored machines all hold the same state. */
static void add_entropy(const uint8_t *data, size_t size)
{
    struct { /* rand_pool_info with room */
        int bits, size;
        uint8_t data[MAX_PAYLOAD];
    } entropy = {.bits = (int)size * 8, .size = (int)size};
    int pool = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    memcpy(entropy.data, data, size);
    ioctl(pool, RNDADDENTROPY, &entropy);
    ioctl(pool, RNDRESEEDCRNG);
    close(pool);
}

/* Take a RENEW: u64 nanoseconds since 1970, u8 length of the nonce, the nonce, entropy. From here on only the new nonce
   counts, and commands of the old host are gone. One with the nonce that we have already is a repetition. */
void renew(const uint8_t *payload, size_t size)
{
    size_t length = size > 9 ? payload[8] : 0;
    if (!length || length >= sizeof nonce || 9 + length > size || memchr(payload + 9, 0, length)) return;
    int64_t time = (int64_t)get64(payload);
    clock_settime(CLOCK_REALTIME, &(struct timespec){.tv_sec = time / 1000000000, .tv_nsec = time % 1000000000});
    add_entropy(payload + 9 + length, size - 9 - length);
    if (strlen(nonce) != length || memcmp(nonce, payload + 9, length)) {
        drop_commands();
        memcpy(nonce, payload + 9, length);
        nonce[length] = 0;
    }
    send_clock(HELLO, nonce, length);
}
