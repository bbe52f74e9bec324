/* The disk that opens only in the state that was built.

   The TPM holds the key of the volume (secret.c) and gives it in that state alone (policy.c). Nothing of the disk is
   believed: the mapping is made of constants, a key and a digest of the header, all from the TPM. A header that is not
   the one that was written is not used, though it has nothing that we need: somebody changed it.

   The first boot finds a TPM without a secret and a partition of zeros. Whenever the power is cut, what is left is one
   of these, by what KEY_INDEX is (`enum state`) and what the partition holds:
     EMPTY or BEGUN, zeros     the first boot, or one that was cut off: everything is made (anew), by another key
     BEGUN, LUKS               cut off before the secret was kept: likewise, since no key of it was ever in use
     SEALED, LUKS              the secret was kept, and all else is done before it, or at every boot (raise, disown)
     EMPTY, LUKS               another TPM, or one that was cleared: refused
     SEALED, zeros             another disk, or one that was wiped: refused
   The recovery key is shown before the secret is kept: so one that was shown last is always the right one.

   Whatever happens, PCR 11 is extended before anything else runs, and the machine goes on only with an open disk. */

#include "sealed.h"
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define SIGNATURES "/.extra/tpm2-pcr-signature.json" /* systemd-stub(7) puts the section .pcrsig there */
#define FILES "/etc/imagekit/data.ext4"
#define SLOTS "/usr/lib/imagekit/slots"
#define VARIABLES "/sys/firmware/efi/efivars"
#define KEY_CHARACTERS "abcdefghijkmnpqrstuvwxyz23456789" /* 32 that are not mistaken for others: 5 bits each */

enum { PASSPHRASE = 32, GROUP = 4, PIECE = 65536, LARGEST_FILES = 1 << 30 }; /* characters, characters, bytes, bytes */

static const char *look_at_tpm(struct policy *policy)
{
    char hex[2 * DIGEST + 1];
    if (tpm_open(&policy->tpm)) return "no TPM";
    int code = pcr_read(&policy->tpm, (1U << MOST_PCRS) - 1, policy->values);
    for (int pcr = 0; !code && pcr < MOST_PCRS; pcr++)
        event("pcr %d %s", pcr, to_hex(policy->values[pcr], DIGEST, hex));
    if (!code) code = start_policy(&policy->tpm, &policy->session);
    return code ? tpm_words(code) : NULL;
}

/* ---- the partition ---- */

static int look_for_label(struct table *table, void *label) { return find_labelled(table, label); }

/* On the disk of the root, or where that is in memory, on any. */
static const char *find_partition_of(const struct seal *seal, const struct place *root, struct place *place)
{
    static struct table table;
    char path[LONGEST];
    struct search search = {.name = seal->disk, .look = look_for_label, .wanted = (void *)seal->disk};
    if (!root) return wait_for(&search, place) ? "no such partition" : NULL;
    snprintf(path, sizeof path, "/dev/%s", root->disk);
    int number = read_partitions(&table, path, O_RDONLY) ? 0 : find_labelled(&table, seal->disk);
    close(table.disk);
    if (number) name_place(place, root->disk, number);
    return number ? NULL : "no such partition";
}

static uint64_t bytes_of(const char *device)
{
    uint64_t size = 0;
    int file = open(device, O_RDONLY | O_CLOEXEC);
    if (ioctl(file, BLKGETSIZE64, &size)) size = 0;
    close(file);
    return size;
}

static int is_zeros(const uint8_t *bytes, size_t size) { return !*bytes && !memcmp(bytes, bytes + 1, size - 1); }

static int is_empty(const char *device)
{
    static uint8_t piece[PIECE];
    int file = open(device, O_RDONLY | O_CLOEXEC), yes = 1;
    for (off_t at = 0; yes && at < OFFSET; at += PIECE)
        yes = pread(file, piece, PIECE, at) == PIECE && is_zeros(piece, PIECE);
    close(file);
    return yes;
}

static const char *map(const struct seal *seal, const char *device, const uint8_t *key, char path[32])
{
    uint64_t size = bytes_of(device);
    if (size <= OFFSET) return "its partition is too small";
    struct crypt crypt = {seal->disk, device, OFFSET / SECTOR, (size - OFFSET) / SECTOR, key};
    return map_crypt(&crypt, path);
}

/* ---- the first boot ---- */

/* From the kernel and from the TPM: neither alone knows it. So early the kernel may know little but the seed that the
   loader gave it, which lies on the boot partition. */
static const char *make_random(struct policy *policy, uint8_t *bytes, size_t size)
{
    uint8_t other[VOLUME_KEY];
    if (size > sizeof other || getrandom(bytes, size, 0) != (ssize_t)size) return "no random numbers";
    int code = get_random(&policy->tpm, other, size);
    for (size_t i = 0; i < size; i++) bytes[i] ^= other[i];
    explicit_bzero(other, sizeof other);
    return code ? tpm_words(code) : NULL;
}

static uint64_t number(const uint8_t *bytes)
{
    uint64_t value = 0;
    for (int i = 8; i--;) value = value << 8 | bytes[i];
    return value;
}

static int copy(int from, int to, uint64_t where, uint64_t size)
{
    static uint8_t piece[PIECE];
    for (uint64_t n; size; size -= n, where += n) {
        n = size < PIECE ? size : PIECE;
        if (from < 0) memset(piece, 0, n);
        else if (read(from, piece, n) != (ssize_t)n) return -1;
        if (pwrite(to, piece, n, (off_t)where) != (ssize_t)n) return -1;
    }
    return 0;
}

/* An empty ext4: its size, then pieces (where, how many bytes, the bytes), numbers of 8 bytes, the lowest first. All
   else of it is zeros, which what is below an encrypted partition never is. */
static int write_files(int from, int to)
{
    uint8_t head[16];
    if (read(from, head, 8) != 8 || number(head) > LARGEST_FILES || copy(-1, to, 0, number(head))) return -1;
    uint64_t whole = number(head);
    for (ssize_t n; (n = read(from, head, sizeof head));) {
        uint64_t where = number(head), size = number(head + 8);
        if (n != sizeof head || size > whole || where > whole - size || copy(from, to, where, size)) return -1;
    }
    return fsync(to);
}

static const char *make_files(const struct seal *seal, const char *device, const uint8_t key[VOLUME_KEY])
{
    char path[32];
    const char *wrong = map(seal, device, key, path);
    if (wrong) return wrong;
    int from = open(FILES, O_RDONLY | O_CLOEXEC), to = open(path, O_WRONLY | O_CLOEXEC);
    if (from < 0 || to < 0 || write_files(from, to)) wrong = "its files cannot be written";
    close(from);
    close(to);
    unmap_device(seal->disk);
    return wrong;
}

static const char *make_passphrase(struct policy *policy, char passphrase[2 * PASSPHRASE])
{
    uint8_t bytes[PASSPHRASE];
    char *to = passphrase;
    const char *wrong = make_random(policy, bytes, sizeof bytes);
    for (int i = 0; i < PASSPHRASE; i++) {
        if (i && !(i % GROUP)) *to++ = '-';
        *to++ = KEY_CHARACTERS[bytes[i] % 32];
    }
    *to = 0;
    explicit_bzero(bytes, sizeof bytes);
    return wrong;
}

/* To the console itself: the kernel's log would keep it, for whoever reads that later. */
static void show(const struct seal *seal, const char *passphrase)
{
    char line[LONGEST];
    snprintf(line, sizeof line, "imagekit: recovery key of %s: %s\r\n", seal->disk, passphrase);
    write_file("/dev/console", O_NOCTTY, line);
    explicit_bzero(line, sizeof line);
}

/* Which disk of which image: another image, though the same key signed it, is honest enough to leave it alone. */
static void name_disk(const struct seal *seal, const struct headers *headers, uint8_t digest[DIGEST])
{
    struct sha256 s;
    sha256_begin(&s);
    sha256_add(&s, "imagekit", sizeof "imagekit");
    sha256_add(&s, seal->image, strlen(seal->image) + 1);
    sha256_add(&s, headers->uuid, sizeof headers->uuid);
    sha256_end(&s, digest);
}

static const char *make_header(const struct seal *seal, struct policy *policy, const char *device,
                               struct secret *secret)
{
    char passphrase[2 * PASSPHRASE];
    struct headers headers;
    const char *wrong = make_passphrase(policy, passphrase);
    if (!wrong) wrong = write_luks(device, secret->key, passphrase);
    if (!wrong) wrong = read_headers(device, &headers);
    memcpy(secret->headers, headers.digest, DIGEST);
    name_disk(seal, &headers, secret->disk);
    if (!wrong && seal->has_recovery) show(seal, passphrase);
    explicit_bzero(passphrase, sizeof passphrase);
    return wrong;
}

/* Whether the firmware checks signatures, by keys that are not being set just now (UEFI 2.10, 3.3). */
static int is_variable(const char *name, uint8_t wanted)
{
    char path[LONGEST];
    uint8_t value[5] = {0}; /* four bytes of attributes come first */
    snprintf(path, sizeof path, VARIABLES "/%s-8be4df61-93ca-11d2-aa0d-00e098032b8c", name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(file, value, sizeof value);
    close(file);
    return n == sizeof value && value[4] == wanted;
}

/* A disk that is sealed while Secure Boot is off would open for whoever leaves it off. */
static int has_secure_boot(void)
{
    mount("efivarfs", VARIABLES, "efivarfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, NULL);
    int yes = is_variable("SecureBoot", 1) && is_variable("SetupMode", 0);
    umount(VARIABLES);
    return yes;
}

/* The TPM is asked first whether it will ever give the key: nothing is written to a disk that would not open. */
static const char *make_new(const struct seal *seal, struct policy *policy, const char *device, struct secret *secret)
{
    const char *wrong = seal->is_signed ? find_signature(policy) : NULL;
    if (seal->has_secure_boot && !has_secure_boot()) return "Secure Boot is off";
    if (!wrong) wrong = prepare_indices(seal, policy);
    if (!wrong) wrong = satisfy(seal, policy);
    if (!wrong) wrong = make_random(policy, secret->key, sizeof secret->key);
    if (!wrong) wrong = make_files(seal, device, secret->key);
    if (!wrong) wrong = make_header(seal, policy, device, secret);
    if (!wrong) wrong = keep_secret(seal, policy, secret);
    return wrong;
}

/* Whether this is a first boot, and not one with another TPM. */
static const char *begin_new(enum state state, const char *device)
{
    struct headers headers;
    if (is_empty(device)) return NULL;
    const char *wrong = read_headers(device, &headers);
    if (wrong || !headers.is_luks) return wrong ? wrong : "its partition is not empty";
    return state == BEGUN ? NULL : "another TPM";
}

/* ---- every other boot ---- */

static const char *check_headers(const struct seal *seal, const char *device, const struct secret *secret)
{
    struct headers headers;
    uint8_t disk[DIGEST];
    const char *wrong = read_headers(device, &headers);
    if (wrong) return wrong;
    name_disk(seal, &headers, disk);
    int is_other = memcmp(disk, secret->disk, DIGEST), is_changed = memcmp(headers.digest, secret->headers, DIGEST);
    if (!headers.is_luks || (is_other && is_changed)) return "another disk";
    return is_other ? "another image" : is_changed ? "header" : NULL;
}

/* Whether this image has proved itself: where there are two slots, what manages them knows. It reads what lies on the
   disk without a signature, so it runs when the TPM gives nothing any more. */
static int is_proven(void)
{
    int status = 0;
    if (access(SLOTS, X_OK)) return 1;
    pid_t pid = fork();
    if (!pid) {
        execl(SLOTS, SLOTS, "blessed", NULL);
        _exit(127);
    }
    return waitpid(pid, &status, 0) == pid && !status;
}

static const char *open_old(const struct seal *seal, struct policy *policy, const char *device, struct secret *secret)
{
    const char *wrong = fetch_secret(seal, policy, secret);
    if (!wrong) wrong = check_headers(seal, device, secret);
    return wrong;
}

/* ---- both ---- */

/* The secret, at the first boot a new one. */
static const char *get_secret(const struct seal *seal, struct policy *policy, const struct place *place,
                              struct secret *secret)
{
    char device[80];
    enum state state;
    snprintf(device, sizeof device, "/dev/%s", place->name);
    compute_policies(seal, policy);
    const char *wrong = ask_state(policy, &state);
    if (!wrong && state != SEALED) wrong = begin_new(state, device);
    if (!wrong) wrong = (state == SEALED ? open_old : make_new)(seal, policy, device, secret);
    if (!wrong) wrong = disown(policy, secret);
    if (wrong) return wrong;
    if (state == SEALED) event("%s unsealed", seal->disk);
    else event("%s new", seal->disk);
    return NULL;
}

static void make_folders(char *path)
{
    for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    mkdir(path, 0755);
}

static const char *mount_data(const struct seal *seal, const struct place *place, const uint8_t *key,
                              const char *below)
{
    char device[80], folder[LONGEST], path[32];
    snprintf(device, sizeof device, "/dev/%s", place->name);
    snprintf(folder, sizeof folder, "%s%s", below, seal->mount);
    enlarge_partition(place);
    const char *wrong = map(seal, device, key, path);
    if (wrong) return wrong;
    make_folders(folder);
    if (mount_files(path, folder, MS_NOSUID | MS_NODEV)) return "its files cannot be mounted";
    grow_files(path, folder);
    return NULL;
}

static const char *open_it(const struct seal *seal, const struct place *root, const char *below)
{
    static struct policy policy = {.signatures = SIGNATURES};
    struct secret secret;
    struct place place;
    const char *wrong = look_at_tpm(&policy);
    if (policy.tpm.file < 0) return wrong;
    if (!wrong) wrong = find_partition_of(seal, root, &place);
    if (!wrong) wrong = get_secret(seal, &policy, &place, &secret);
    wrong = leave(seal, &policy, wrong);
    if (!wrong && policy.is_behind && is_proven()) wrong = raise_generation(&policy, &secret);
    close(policy.tpm.file);
    explicit_bzero(&policy.tpm, sizeof policy.tpm); /* its packets held the key */
    if (!wrong) wrong = mount_data(seal, &place, secret.key, below);
    explicit_bzero(&secret, sizeof secret);
    return wrong;
}

/* Open the sealed disk and mount it below a folder; why that cannot be, or NULL. root: where the root lies, if not in
   memory. */
const char *open_sealed(const struct place *root, const char *below)
{
    struct seal seal;
    const char *wrong = read_settings(SEAL, &seal);
    if (!wrong) wrong = open_it(&seal, root, below);
    if (wrong) event("%s sealed: %s", *seal.disk ? seal.disk : "data", wrong);
    else event("%s open", seal.disk);
    return wrong;
}
