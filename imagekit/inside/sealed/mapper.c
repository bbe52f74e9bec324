/* Device-mapper, by its ioctls: Documentation/admin-guide/device-mapper/ of the kernel, and linux/dm-ioctl.h. */

#include "sealed.h"
#include <linux/dm-ioctl.h>
#include <linux/keyctl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define CONTROL "/dev/mapper/control"
#define KEY_NAME "imagekit:disk"

enum { ROOM = 4096 }; /* bytes of an order: there is one target, and its parameters are short */

union order {
    struct dm_ioctl head;
    uint8_t bytes[ROOM];
};

static union order order_about(const char *name)
{
    union order order = {.head = {.version = {4, 0, 0}, .data_size = ROOM, .data_start = sizeof(struct dm_ioctl)}};
    snprintf(order.head.name, sizeof order.head.name, "%s", name);
    return order;
}

static int load(int control, const struct target *target)
{
    union order order = order_about(target->name);
    size_t at = sizeof(struct dm_ioctl), size = strlen(target->parameters) + 1;
    struct dm_target_spec spec = {.sector_start = 0, .length = target->sectors};
    if (size > ROOM - at - sizeof spec) return errno = E2BIG;
    snprintf(spec.target_type, sizeof spec.target_type, "%s", target->type);
    memcpy(order.bytes + at, &spec, sizeof spec);
    memcpy(order.bytes + at + sizeof spec, target->parameters, size);
    order.head.target_count = 1;
    order.head.flags = DM_SECURE_DATA_FLAG | (target->is_read_only ? DM_READONLY_FLAG : 0);
    int failed = ioctl(control, DM_TABLE_LOAD, &order);
    explicit_bzero(&order, sizeof order);
    return failed;
}

/* Make a device of one target; what went wrong, or NULL and the path of the device. */
const char *map_device(const struct target *target, char path[32])
{
    union order created = order_about(target->name), resumed = created;
    int control = open(CONTROL, O_RDWR | O_CLOEXEC);
    if (control < 0) return "no device-mapper";
    int failed = ioctl(control, DM_DEV_CREATE, &created);
    if (!failed && (load(control, target) || ioctl(control, DM_DEV_SUSPEND, &resumed))) {
        int was = errno;
        union order removed = order_about(target->name);
        ioctl(control, DM_DEV_REMOVE, &removed);
        failed = errno = was;
    }
    int was = errno;
    close(control);
    if (failed) return strerror(was);
    snprintf(path, 32, "/dev/dm-%u", minor(created.head.dev));
    return access(path, F_OK) ? "the kernel made no device of it" : NULL;
}

void unmap_device(const char *name)
{
    union order order = order_about(name);
    int control = open(CONTROL, O_RDWR | O_CLOEXEC);
    ioctl(control, DM_DEV_REMOVE, &order);
    close(control);
}

/* ---- dm-crypt ---- */

static const char *map_by(const struct crypt *crypt, const char *key, char path[32])
{
    char parameters[512];
    snprintf(parameters, sizeof parameters, "aes-xts-plain64 %s 0 %s %llu", key, crypt->device,
             (unsigned long long)crypt->start);
    struct target target = {crypt->name, "crypt", parameters, crypt->sectors, 0};
    const char *wrong = map_device(&target, path);
    explicit_bzero(parameters, sizeof parameters);
    return wrong;
}

/* Map the device. The key goes through the kernel's keyring, where the table that root can read names it and does not
   hold it; a kernel that has none takes it in the table (dm-crypt.rst, <key>). */
const char *map_crypt(const struct crypt *crypt, char path[32])
{
    char hex[2 * VOLUME_KEY + 1];
    long key = syscall(SYS_add_key, "logon", KEY_NAME, crypt->key, (size_t)VOLUME_KEY, KEY_SPEC_PROCESS_KEYRING);
    const char *wrong = "";
    if (key >= 0) wrong = map_by(crypt, ":64:logon:" KEY_NAME, path);
    if (key >= 0) syscall(SYS_keyctl, KEYCTL_UNLINK, key, KEY_SPEC_PROCESS_KEYRING);
    if (!wrong) return NULL;
    wrong = map_by(crypt, to_hex(crypt->key, VOLUME_KEY, hex), path);
    explicit_bzero(hex, sizeof hex);
    return wrong;
}
