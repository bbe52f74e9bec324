/* The commands of a TPM that are about its NV memory: Part 3, 31. */

#include "tpm.h"
#include <string.h>

enum {
    CC_NV_UNDEFINE = 0x122,
    CC_NV_DEFINE = 0x12a,
    CC_NV_WRITE = 0x137,
    CC_NV_WRITE_LOCK = 0x138,
    CC_NV_READ = 0x14e,
    CC_NV_READ_LOCK = 0x14f,
    CC_NV_READ_PUBLIC = 0x169,
}; /* Part 2, 6.5.2 */

enum { PIECE = 256 }; /* bytes of one read or write: any TPM for PCs takes 512 */

/* TPMS_NV_PUBLIC (Part 2, 13.6). */
void put_nv(struct packet *p, const struct nv *nv)
{
    put(p, 4, nv->index);
    put(p, 2, ALG_SHA256);
    put(p, 4, nv->attributes);
    put_sized(p, nv->policy, nv->policy_size);
    put(p, 2, nv->size);
}

/* 31.6 */
int nv_read_public(struct tpm *tpm, uint32_t index, struct nv *nv)
{
    put(begin(tpm, CC_NV_READ_PUBLIC), 4, index);
    int code = tpm_send(tpm);
    struct packet *r = &tpm->reply;
    size_t size, name;
    if (code) return code;
    size_t whole = (size_t)get(r, 2), begin = r->at;
    struct nv told = {.index = (uint32_t)get(r, 4)};
    int is_other = get(r, 2) != ALG_SHA256;
    told.attributes = (uint32_t)get(r, 4);
    const uint8_t *policy = get_sized(r, &size);
    told.size = (size_t)get(r, 2);
    if (r->is_bad || r->at - begin != whole || told.index != index) return TPM_BROKEN;
    get_sized(r, &name);
    if (!is_done(r)) return TPM_BROKEN;
    if (!is_other && size <= DIGEST) { /* else its policy is none that we know, and stays empty */
        memcpy(told.policy, policy, size);
        told.policy_size = size;
    }
    *nv = told;
    return 0;
}

/* 31.3, by the owner, who has no password yet */
int nv_define(struct tpm *tpm, const struct nv *nv)
{
    struct packet public = {.size = 0}, *p = begin(tpm, CC_NV_DEFINE);
    put_nv(&public, nv);
    put(p, 4, OWNER);
    authorize(tpm, PASSWORD);
    put_sized(p, "", 0);
    put_inner(p, &public);
    return finish(tpm);
}

static int by_index(struct tpm *tpm, uint32_t code, uint32_t by, uint32_t index, uint32_t session)
{
    struct packet *p = begin(tpm, code);
    put(p, 4, by);
    put(p, 4, index);
    authorize(tpm, session);
    return finish(tpm);
}

/* 31.4 */
int nv_undefine(struct tpm *tpm, uint32_t index) { return by_index(tpm, CC_NV_UNDEFINE, OWNER, index, PASSWORD); }

/* 31.7, `by` the owner or the index's own policy. A policy session is good for one command: for one piece. */
int nv_write(struct tpm *tpm, uint32_t by, uint32_t index, uint32_t session, const void *bytes, size_t size)
{
    const uint8_t *from = bytes;
    for (size_t at = 0, n; at < size; at += n) {
        n = size - at < PIECE ? size - at : PIECE;
        struct packet *p = begin(tpm, CC_NV_WRITE);
        put(p, 4, by);
        put(p, 4, index);
        authorize(tpm, session);
        put_sized(p, from + at, n);
        put(p, 2, at);
        int code = finish(tpm);
        if (code) return code;
    }
    return 0;
}

/* The same of a few bytes, by the owner who has this password. */
int nv_write_owned(struct tpm *tpm, uint32_t index, const uint8_t password[DIGEST], const void *bytes, size_t size)
{
    struct packet *p = begin(tpm, CC_NV_WRITE);
    put(p, 4, OWNER);
    put(p, 4, index);
    authorize_with(tpm, password);
    put_sized(p, bytes, size);
    put(p, 2, 0);
    return finish(tpm);
}

/* 31.13 */
int nv_read(struct tpm *tpm, uint32_t index, uint32_t session, void *bytes, size_t size)
{
    uint8_t *to = bytes;
    for (size_t at = 0, n, given; at < size; at += n) {
        n = size - at < PIECE ? size - at : PIECE;
        struct packet *p = begin(tpm, CC_NV_READ);
        put(p, 4, index);
        put(p, 4, index);
        authorize(tpm, session);
        put(p, 2, n);
        put(p, 2, at);
        int code = tpm_send(tpm);
        if (code) return code;
        const uint8_t *piece = get_sized(&tpm->reply, &given);
        if (!piece || given != n || !is_done(&tpm->reply)) return TPM_BROKEN;
        memcpy(to + at, piece, n);
    }
    return 0;
}

/* 31.14: nobody reads it until the TPM is reset */
int nv_read_lock(struct tpm *tpm, uint32_t index, uint32_t session)
{
    return by_index(tpm, CC_NV_READ_LOCK, index, index, session);
}

/* 31.11: nobody writes it again */
int nv_write_lock(struct tpm *tpm, uint32_t index, uint32_t session)
{
    return by_index(tpm, CC_NV_WRITE_LOCK, index, index, session);
}
