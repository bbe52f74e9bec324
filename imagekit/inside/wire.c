/* The wire: frames as imagekit/channel.py describes them, queued for and read from a tty that never blocks us. */

#include "agent.h"
#include <termios.h>
#include <time.h>

enum { HEAD = 16 };

static const uint8_t MAGIC[4] = {'I', 'K', 1, 0xa5};

char nonce[65];
static char path[80]; /* of the tty */
static int line = -1;
static uint8_t received[2 * (HEAD + MAX_PAYLOAD)], queue[1 << 17];
static size_t received_size, queue_size;

int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

uint32_t get32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }

uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

void put(uint8_t *p, uint64_t value, int bytes)
{
    for (; bytes--; value >>= 8) *p++ = (uint8_t)value;
}

/* zlib's CRC-32, four bits at a time: a table of 256 costs more to make than a boot's frames cost to check. */
static uint32_t crc(uint32_t sum, const void *data, size_t size)
{
    static uint32_t table[16];
    const uint8_t *p = data;
    for (uint32_t n = table[1] ? 16 : 0; n < 16; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 4; bit++) c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
        table[n] = c;
    }
    for (sum = ~sum; size--; p++) {
        sum = table[(sum ^ *p) & 15] ^ sum >> 4;
        sum = table[(sum ^ *p >> 4) & 15] ^ sum >> 4;
    }
    return ~sum;
}

static uint32_t checksum(const uint8_t *frame, size_t payload)
{
    return crc(crc(crc(0, nonce, strlen(nonce)), frame + 4, 8), frame + HEAD, payload);
}

/* Wait up to ten seconds for the tty, whose driver may come as a module, and make it raw. */
static int reopen_line(void)
{
    struct termios raw;
    if (line >= 0) close(line);
    line = -1;
    for (int tries = 0; tries < 1000 && line < 0; tries++) {
        if (tries) poll(NULL, 0, 10);
        line = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    }
    if (line < 0 || tcgetattr(line, &raw)) return line;
    cfmakeraw(&raw);
    cfsetspeed(&raw, B115200); /* QEMU holds the last bytes of a frame back for the time of four characters */
    raw.c_cflag |= CLOCAL | CREAD;
    return tcsetattr(line, TCSANOW, &raw) ? -1 : line;
}

int open_line(const char *name)
{
    snprintf(path, sizeof path, "/dev/%s", name);
    return reopen_line();
}

/* Room for bulk: some is kept back for what must get through, acknowledgements and the ends of commands. */
int has_room(void) { return queue_size + 4 * (HEAD + MAX_PAYLOAD) < sizeof queue; }

/* Queue a frame. Without room it is lost, which takes a host that sends on and on and reads nothing. */
void send_frame(int kind, int stream, const void *payload, size_t size)
{
    uint8_t *frame = queue + queue_size;
    if (queue_size + HEAD + size > sizeof queue) return;
    memcpy(frame, MAGIC, 4);
    put(frame + 4, (uint64_t)kind, 2);
    put(frame + 6, (uint64_t)stream, 2);
    put(frame + 8, size, 4);
    memcpy(frame + HEAD, payload, size);
    put(frame + 12, checksum(frame, size), 4);
    queue_size += HEAD + size;
}

/* Queue a HELLO or PONG: our clock, and the bytes that prove whom we heard. */
void send_clock(int kind, const void *echo, size_t size)
{
    uint8_t payload[8 + 64];
    if (size > 64) size = 64;
    put(payload, (uint64_t)now(), 8);
    memcpy(payload + 8, echo, size);
    send_frame(kind, 0, payload, 8 + size);
}

struct pollfd line_to_poll(void) { return (struct pollfd){line, POLLIN | (queue_size ? POLLOUT : 0), 0}; }

/* Write what the tty takes now. */
void flush_line(void)
{
    ssize_t n = queue_size ? write(line, queue, queue_size) : 0;
    if (n <= 0) return;
    queue_size -= (size_t)n;
    memmove(queue, queue + n, queue_size);
}

/* Obey every whole frame in what was received; what is none is skipped, as channel.py's Decoder does. */
void read_line(obey_function *obey)
{
    uint8_t *p = received, *end;
    ssize_t n = read(line, received + received_size, sizeof received - received_size);
    if (n == 0 || (n < 0 && errno == EIO)) reopen_line(); /* somebody hung it up, as a getty does */
    if (n <= 0) return;
    end = received + (received_size += (size_t)n);
    while (end - p >= HEAD) {
        uint32_t size = get32(p + 8);
        if (memcmp(p, MAGIC, 4) || p[5] || size > MAX_PAYLOAD) p++;
        else if (end - p < (ptrdiff_t)(HEAD + size)) break;
        else if (checksum(p, size) != get32(p + 12)) p++;
        else {
            obey(p[4], p[6] | p[7] << 8, p + HEAD, size);
            p += HEAD + size;
        }
    }
    received_size = (size_t)(end - p);
    memmove(received, p, received_size);
}
