/* What the body holds, piece by piece and in order: each chunk is read into memory of our own, verified there, and
   inflated from there. Where there are several processors, threads do that ahead. */

#include "launcher.h"
#include "libdeflate.h"
#include <pthread.h>
#include <sched.h>

enum { MOST_THREADS = 4, HEAD = 10, TAIL = 10 };

struct piece {
    uint8_t *packed, *bytes; /* as it is in the file; what it holds */
    const char *wrong;
    int is_ready;
};

static const struct image *of;
static const uint8_t *rows; /* the table */
static uint64_t *offsets;
static struct piece ring[2 * MOST_THREADS];
static uint32_t slots, claimed, taken, given; /* pieces that threads began, that were handed out, that came back */
static int threads, is_summed;
static struct libdeflate_decompressor *own; /* for when no thread can be made */
static pthread_t thread[MOST_THREADS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct sha256 sum;

static uint32_t packed_size(uint32_t n) { return get32(rows + 40 * n); }

static uint32_t size_of(uint32_t n) { return get32(rows + 40 * n + 4); }

static void *memory(size_t size)
{
    void *bytes = malloc(size);
    if (!bytes) fail("not enough memory");
    return bytes;
}

static void read_table(const struct image *image)
{
    struct sha256 all;
    char *table = memory(framed(image->table)), hex[65];
    uint64_t packed = 0, size = 0;
    read_all(image->file, table, framed(image->table), image->trailer + framed(image->manifest));
    unframe(table, image->table, "IK");
    sha256_begin(&all);
    sha256_add(&all, table, image->table);
    sha256_end_hex(&all, hex);
    if (strcmp(hex, image->sum)) damaged("its chunk table");
    rows = (uint8_t *)table;
    offsets = memory(image->chunks * sizeof *offsets);
    for (uint32_t n = 0; n < image->chunks; n++) {
        offsets[n] = image->start + packed;
        packed += packed_size(n);
        size += size_of(n);
        if (!packed_size(n) || packed_size(n) > LARGEST_CHUNK || !size_of(n) || size_of(n) > LARGEST_PIECE)
            damaged("its chunk table");
        if (image->is_erofs && packed_size(n) != size_of(n)) damaged("its chunk table");
    }
    if (packed != image->body || size != image->size) damaged("its chunk table");
}

/* Inflate a chunk (docs/format.md, "The chunk table"); 0 when any byte is not as it must be. */
static int inflate(uint32_t n, uint8_t *packed, uint8_t *bytes, struct libdeflate_decompressor *inflater)
{
    static const uint8_t head[HEAD] = {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff};
    size_t size = packed_size(n), used, got, first = n ? 0 : HEAD, last = n + 1 < of->chunks ? 0 : TAIL;
    if (size < first + last + 4 || (first && memcmp(packed, head, HEAD))) return 0;
    uint8_t *stop = packed + size - last;
    if (last && (stop[0] != 3 || stop[1] || get32(stop + 6) != (uint32_t)of->size)) return 0;
    if (memcmp(stop - 4, "\0\0\xff\xff", 4)) return 0;
    memcpy(stop, "\3", 2); /* an empty last block: the chunk becomes a deflate stream of its own */
    size = (size_t)(stop + 2 - (packed + first));
    return libdeflate_deflate_decompress_ex(inflater, packed + first, size, bytes, size_of(n), &used, &got) ==
               LIBDEFLATE_SUCCESS && used == size && got == size_of(n);
}

/* What is wrong with a piece, or NULL. Threads tell that to the one that takes the pieces: it has more to end. */
static const char *make(uint32_t n, struct piece *piece, struct libdeflate_decompressor *inflater)
{
    struct sha256 s;
    uint8_t digest[32];
    uint8_t *packed = of->is_erofs ? piece->bytes : piece->packed;
    ssize_t got = pread(of->file, packed, packed_size(n), (off_t)offsets[n]);
    if (got != (ssize_t)packed_size(n)) return "it cannot be read";
    sha256_begin(&s);
    sha256_add(&s, packed, packed_size(n));
    sha256_end(&s, digest);
    if (memcmp(digest, rows + 40 * n + 8, 32)) return "a chunk of its payload";
    int fits = of->is_erofs || inflate(n, packed, piece->bytes, inflater);
    return fits ? NULL : "its payload cannot be inflated";
}

static void *work(void *inflater)
{
    pthread_mutex_lock(&lock);
    while (claimed < of->chunks) {
        uint32_t n = claimed++;
        while (n >= given + slots) pthread_cond_wait(&changed, &lock);
        pthread_mutex_unlock(&lock);
        const char *wrong = make(n, ring + n % slots, inflater);
        pthread_mutex_lock(&lock);
        ring[n % slots].wrong = wrong;
        ring[n % slots].is_ready = 1;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    libdeflate_free_decompressor(inflater);
    return NULL;
}

static uint32_t largest(uint32_t (*size)(uint32_t))
{
    uint32_t most = 0;
    for (uint32_t n = 0; n < of->chunks; n++)
        if (size(n) > most) most = size(n);
    return most;
}

void open_pieces(const struct image *image, int with_sum)
{
    cpu_set_t processors;
    of = image;
    is_summed = with_sum;
    read_table(image);
    sha256_begin(&sum);
    threads = sched_getaffinity(0, sizeof processors, &processors) ? 1 : CPU_COUNT(&processors);
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if ((uint32_t)threads > image->chunks) threads = (int)image->chunks;
    slots = 2 * (uint32_t)threads;
    if (slots > image->chunks) slots = image->chunks;
    if (!(own = libdeflate_alloc_decompressor())) fail("not enough memory");
    for (uint32_t i = 0; i < slots; i++)
        ring[i] = (struct piece){memory(largest(packed_size) + 2), memory(largest(size_of)), NULL, 0};
    int wanted = image->chunks > 1 ? threads : 0;
    for (threads = 0; threads < wanted; threads++) {
        void *inflater = libdeflate_alloc_decompressor();
        if (inflater && !pthread_create(thread + threads, NULL, work, inflater)) continue;
        libdeflate_free_decompressor(inflater);
        break; /* a limit of processes: there are fewer then, or none */
    }
}

const uint8_t *next_piece(size_t *size)
{
    uint32_t n = taken;
    pthread_mutex_lock(&lock);
    if (n) ring[(n - 1) % slots].is_ready = 0;
    given = n;
    pthread_cond_broadcast(&changed);
    if (n == of->chunks) {
        pthread_mutex_unlock(&lock);
        return NULL;
    }
    if (!threads) ring[n % slots].wrong = make(n, ring + n % slots, own);
    while (threads && !ring[n % slots].is_ready) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    if (ring[n % slots].wrong) damaged(ring[n % slots].wrong);
    taken++;
    *size = size_of(n);
    if (is_summed) sha256_add(&sum, ring[n % slots].bytes, *size);
    return ring[n % slots].bytes;
}

/* All threads have ended, as unshare(2) of a user namespace wants it. */
void close_pieces(char digest[65])
{
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    libdeflate_free_decompressor(own);
    for (uint32_t i = 0; i < slots; i++) free(ring[i].packed), free(ring[i].bytes);
    free(offsets), free((void *)rows);
    claimed = taken = given = 0;
    if (digest) sha256_end_hex(&sum, digest);
}
