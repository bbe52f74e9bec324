/* imagekit-attest: what a machine proves of itself to whoever asks, in a static program of its own.

     imagekit-attest NONCE          print it; NONCE is 32 bytes in hexadecimal, fresh for each asking       (attest.c)
     imagekit-attest --serve PORT   answer GET /attest?nonce=NONCE                                          (serve.c) */

#include "boot.h"
#include "attest.h"

/* By the kernel's own manager of what is loaded, where there is one: what we load there is gone when we are. */
int open_tpm(void)
{
    int tpm = open("/dev/tpmrm0", O_RDWR | O_CLOEXEC);
    return tpm < 0 && errno == ENOENT ? open("/dev/tpm0", O_RDWR | O_CLOEXEC) : tpm;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--serve")) return serve(argv[2]);
    if (argc == 2) return attest(argv[1]);
    fprintf(stderr, "usage: imagekit-attest NONCE, or imagekit-attest --serve PORT\n");
    return 2;
}
