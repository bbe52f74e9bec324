/* inside/sealed on the host: a boot as seal.c does it, but for the disk, which is a file that holds the secret.

   sealed_host TPM FOLDER    the TPM is a socket; the folder has `seal`, `signatures` and, after a first boot, `disk`.
   It prints "new", "open", or "sealed: REASON". */

#include "sealed.h"
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct policy policy;
static struct secret secret;
static char disk[LONGEST];

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int tpm = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return connect(tpm, (struct sockaddr *)&address, sizeof address) ? -1 : tpm;
}

static const char *make_new(const struct seal *seal, struct secret *secret)
{
    const char *wrong = seal->is_signed ? find_signature(&policy) : NULL;
    if (!wrong) wrong = prepare_indices(seal, &policy);
    if (!wrong) wrong = satisfy(seal, &policy);
    int code = wrong ? 0 : get_random(&policy.tpm, secret->key, sizeof secret->key);
    if (code) wrong = tpm_words(code);
    if (wrong) return wrong;
    int file = open(disk, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (write(file, secret, sizeof *secret) != sizeof *secret) return "the file";
    close(file);
    return keep_secret(seal, &policy, secret);
}

static const char *open_old(const struct seal *seal, struct secret *secret)
{
    struct secret kept;
    const char *wrong = fetch_secret(seal, &policy, secret);
    if (wrong) return wrong;
    int file = open(disk, O_RDONLY | O_CLOEXEC);
    if (read(file, &kept, sizeof kept) != sizeof kept || memcmp(&kept, secret, sizeof kept)) return "another disk";
    close(file);
    return NULL;
}

static const char *boot(const struct seal *seal, enum state *state)
{
    int code = pcr_read(&policy.tpm, (1U << MOST_PCRS) - 1, policy.values);
    if (!code) code = start_policy(&policy.tpm, &policy.session);
    if (code) return tpm_words(code);
    compute_policies(seal, &policy);
    const char *wrong = ask_state(&policy, state);
    if (!wrong) wrong = (*state == SEALED ? open_old : make_new)(seal, &secret);
    return wrong ? wrong : disown(&policy, &secret);
}

int main(int argc, char **argv)
{
    static char settings[LONGEST], signatures[LONGEST];
    struct seal seal;
    enum state state = EMPTY;
    if (argc != 3) return 2;
    signal(SIGPIPE, SIG_IGN); /* a device has no such */
    snprintf(disk, sizeof disk, "%s/disk", argv[2]);
    snprintf(settings, sizeof settings, "%s/seal", argv[2]);
    snprintf(signatures, sizeof signatures, "%s/signatures", argv[2]);
    policy.signatures = signatures;
    const char *wrong = read_settings(settings, &seal);
    if (!wrong && (policy.tpm.file = connect_to(argv[1])) < 0) wrong = "no TPM";
    if (!wrong) wrong = boot(&seal, &state);
    if (policy.tpm.file > 0) wrong = leave(&seal, &policy, wrong);
    if (!wrong && policy.is_behind) wrong = raise_generation(&policy, &secret);
    if (wrong) printf("sealed: %s\n", wrong);
    else puts(state == SEALED ? "open" : "new");
    return 0;
}
