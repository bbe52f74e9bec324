/* inside/attest.c on the host: the TPM is the socket TPM_SOCKET of an emulated one. Built by swtpm_rig.py. */

#include "boot.h"
#include "attest.h"
#include <sys/socket.h>
#include <sys/un.h>

int open_tpm(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int tpm = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", getenv("TPM_SOCKET"));
    return connect(tpm, (struct sockaddr *)&address, sizeof address) ? -1 : tpm;
}

/* A stream has no ends of messages: the size is the answer's own. */
ssize_t ask_tpm(int tpm, const uint8_t *command, size_t size, uint8_t *answer, size_t room)
{
    if (write(tpm, command, size) != (ssize_t)size || recv(tpm, answer, 10, MSG_WAITALL) != 10) return -1;
    size_t whole = (size_t)answer[4] << 8 | answer[5];
    if (whole <= 10 || whole > room) return whole == 10 ? 10 : -1;
    return recv(tpm, answer + 10, whole - 10, MSG_WAITALL) == (ssize_t)(whole - 10) ? (ssize_t)whole : -1;
}

int main(int argc, char **argv)
{
    return argc == 3 ? serve(argv[2]) : attest(argv[1]);
}
