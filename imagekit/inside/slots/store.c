/* Every write to a disk, so that tests can cut the power before each of them. */

#include "slots.h"
#include <linux/fs.h>
#include <sys/ioctl.h>

long writes_left = -1;

/* Write; what went wrong, or NULL. It is on the disk only after settle(). */
const char *store(int disk, const void *bytes, size_t size, uint64_t at)
{
    for (const uint8_t *from = bytes; size;) {
        if (!writes_left) exit(CUT);
        if (writes_left > 0) writes_left--;
        ssize_t n = pwrite(disk, from, size, (off_t)at);
        if (n <= 0) return n ? strerror(errno) : "the disk takes nothing";
        from += n, at += (uint64_t)n, size -= (size_t)n;
    }
    return NULL;
}

/* What is read after this comes from the disk: a block device forgets its cache only so. */
const char *settle(int disk)
{
    if (fsync(disk)) return strerror(errno);
    ioctl(disk, BLKFLSBUF, 0);
    posix_fadvise(disk, 0, 0, POSIX_FADV_DONTNEED);
    return NULL;
}

int load(int disk, void *bytes, size_t size, uint64_t at)
{
    for (uint8_t *to = bytes; size;) {
        ssize_t n = pread(disk, to, size, (off_t)at);
        if (n <= 0) return -1;
        to += n, at += (uint64_t)n, size -= (size_t)n;
    }
    return 0;
}

uint64_t little(const uint8_t *p, int bytes)
{
    uint64_t value = 0;
    while (bytes--) value = value << 8 | p[bytes];
    return value;
}

void put_little(uint8_t *p, int bytes, uint64_t value)
{
    for (; bytes--; value >>= 8) *p++ = (uint8_t)value;
}
