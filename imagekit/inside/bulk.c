/* Bulk: what a command printed is left lying in our memory, and the host copies it from there by QEMU's own hand.

   A UART under emulation carries half a megabyte a second. So where more than a few frames of output are at hand they
   are read into a slot, and a BULK frame tells the physical addresses, length and checksum; the host answers FREE. No
   device and no module is needed. Nothing more of that stream is sent until then. A host that cannot copy, or finds
   other bytes there (the kernel may have moved the pages), says so, and is sent the bytes by frames as ever. */

#include "agent.h"
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { SLOT = 1 << 20, HUGE_PAGE = 2 << 20, LEAST = 3 * MAX_PAYLOAD, MOST_FAILURES = 4 };
enum { MOST_RUNS = 32, RUN = 12, PREFIX = 13 }; /* of the frame */

static uint8_t *slot;
static int is_off, failures, stream = -1, kind;
static uint32_t number;
static size_t size, resent;
static int is_resending;
static uint8_t payload[PREFIX + MOST_RUNS * RUN];

/* zlib's CRC-32, eight bytes at a time. */
static uint32_t crc(const uint8_t *p, size_t left)
{
    static uint32_t table[8][256];
    uint32_t sum = ~0U;
    for (uint32_t n = table[0][1] ? 256 : 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++) c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
        table[0][n] = c;
    }
    for (int n = table[1][1] ? 256 : 0; n < 256; n++)
        for (int i = 1; i < 8; i++) table[i][n] = table[0][table[i - 1][n] & 255] ^ table[i - 1][n] >> 8;
    for (; left >= 8; left -= 8, p += 8) {
        uint32_t a, b; /* our machines are little-endian */
        memcpy(&a, p, 4);
        memcpy(&b, p + 4, 4);
        a ^= sum;
        sum = table[7][a & 255] ^ table[6][a >> 8 & 255] ^ table[5][a >> 16 & 255] ^ table[4][a >> 24] ^
              table[3][b & 255] ^ table[2][b >> 8 & 255] ^ table[1][b >> 16 & 255] ^ table[0][b >> 24];
    }
    for (; left--; p++) sum = table[0][(sum ^ *p) & 255] ^ sum >> 8;
    return ~sum;
}

/* One page of two megabytes, if the kernel has one: its memory is in one piece. */
static void make_slot(void)
{
    uint8_t *p = mmap(NULL, 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    is_off = p == MAP_FAILED;
    if (is_off) return;
    slot = p + (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    madvise(slot, HUGE_PAGE, MADV_HUGEPAGE);
    madvise(slot, HUGE_PAGE, MADV_DONTFORK); /* else what we write after a fork goes to another page */
    mlock(slot, SLOT);
}

/* Write where the slot lies (u64 address, u32 size of each run) into the payload; returns how much of it that is. */
static size_t find_runs(int *runs)
{
    static uint64_t pages[SLOT / 4096];
    uint64_t last = 0, page = (uint64_t)sysconf(_SC_PAGESIZE);
    size_t count = SLOT / page, found = 0;
    int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    ssize_t n = pread(map, pages, count * 8, (off_t)((uintptr_t)slot / page * 8));
    close(map);
    for (*runs = 0; n > 0 && found < (size_t)n / 8; found++) {
        uint64_t frame = pages[found] >> 63 ? pages[found] & ((1ULL << 55) - 1) : 0; /* admin-guide/mm/pagemap.rst */
        if (!frame || (frame != last + 1 && *runs == MOST_RUNS)) break;
        if (frame != last + 1) put(payload + PREFIX + RUN * (*runs)++, frame * page, 8);
        uint8_t *run_size = payload + PREFIX + RUN * (*runs - 1) + 8;
        put(run_size, (frame == last + 1 ? get32(run_size) : 0) + page, 4);
        last = frame;
    }
    return found * page;
}

/* Take what a command printed, if it is much, and tell the host where it lies; returns whether that was done. */
int send_bulk(int of, int what, int end)
{
    int waiting = 0, runs;
    if (is_off || stream >= 0 || ioctl(end, FIONREAD, &waiting) || waiting < LEAST) return 0;
    if (!slot) make_slot();
    size_t room = is_off ? 0 : find_runs(&runs);
    if (room < LEAST) is_off = 1;
    ssize_t n = is_off ? -1 : read(end, slot, room);
    if (n <= 0) return 0;
    size = (size_t)n;
    fcntl(end, F_SETPIPE_SZ, SLOT); /* there is more to come while the host copies */
    stream = of;
    kind = what;
    payload[0] = (uint8_t)what;
    put(payload + 1, ++number, 4);
    put(payload + 5, size, 4);
    put(payload + 9, crc(slot, size), 4);
    send_frame(BULK, of, payload, PREFIX + RUN * (size_t)runs);
    return 1;
}

/* Take a FREE: u32 the bulk's number, u8 whether it was copied. */
void take_free(const uint8_t *said, size_t length)
{
    if (length < 5 || stream < 0 || is_resending || get32(said) != number) return;
    resent = said[4] ? size : 0;
    failures = said[4] ? 0 : failures + 1;
    is_off = failures == MOST_FAILURES;
    is_resending = 1;
}

/* Send what could not be copied; returns the stream that is through with its bulk now, or -1. */
int resend_bulk(void)
{
    int through = stream;
    for (; is_resending && resent < size && has_room(); resent += MAX_PAYLOAD) {
        size_t piece = size - resent < MAX_PAYLOAD ? size - resent : MAX_PAYLOAD;
        send_frame(kind, stream, slot + resent, piece);
    }
    if (!is_resending || resent < size) return -1;
    drop_bulk();
    return through;
}

void drop_bulk(void)
{
    stream = -1;
    is_resending = 0;
}
