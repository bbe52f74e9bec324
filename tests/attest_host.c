/* inside/attest.c on the host: the TPM is the socket TPM_SOCKET of an emulated one. Built by attest_rig.py. */

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

int main(int argc, char **argv)
{
    return argc == 3 ? serve(argv[2]) : attest(argv[1]);
}
