/* What the files of the launcher share; launcher.c says what it is. */

#define _GNU_SOURCE
#include "../sha256.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OURS = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 }; /* exit codes, as env(1) and docker have them */

/* ---- launcher.c ---- */

_Noreturn void fail(const char *form, ...) __attribute__((format(printf, 1, 2))); /* one line on stderr, code 125 */

/* ---- image.c: the signed file behind the launcher ---- */

enum { LARGEST_CHUNK = 2097152, LARGEST_PIECE = 4194304 };

struct image {
    int file;
    uint64_t trailer, body, start, size; /* offsets of trailer and body; bytes of the body, and of what it holds */
    uint32_t chunks, manifest, table;    /* how many; lengths of the manifest and of the table */
    int is_erofs, is_read_only;
    unsigned uid, gid;
    char **arguments, **environment, *workdir;
    char content[65], sum[65], vouched[65]; /* hex: of what the body holds, of its table, of what the key vouches for */
};

void open_image(struct image *image, int file);
void verify_image(void); /* by the key that was baked in */
void show_image(const struct image *image);
void read_all(int file, void *bytes, size_t size, uint64_t from); /* or fail */
void unframe(char *data, size_t size, const char *kind);
size_t framed(size_t size);
uint32_t get32(const uint8_t *p);
_Noreturn void damaged(const char *what);

/* ---- pieces.c: what the body holds, verified and inflated, by several threads where there are processors ---- */

void open_pieces(const struct image *image, int with_sum);
const uint8_t *next_piece(size_t *size); /* valid until the next call; NULL at the end */
void close_pieces(char digest[65]);      /* sha256 of all that came, in hex, if it was wanted */

/* ---- untar.c ---- */

void untar(int folder, int with_owners);

/* ---- kept.c: trees and file systems that were unpacked once, below a user's cache ---- */

extern const char *kept_reason; /* why keep() keeps nothing */

/* The folder that holds root/ or image, locked; -1 where there is no cache. The image is verified then. */
int keep(const struct image *image);
void begin_draft(int folder, const char *path); /* what is removed when we fail; -1: nothing any more */
void drop_draft(void);
void remove_tree(int folder, const char *name);
void copy_erofs(const struct image *image, int file);

/* ---- root.c: namespace, mounts, and another root ---- */

void enter_namespace(const struct image *image, int kept);
const char *mount_root(const struct image *image, int is_kept);
void make_mount_points(int root); /* what an image may lack */
void leave_host(int is_read_only);
