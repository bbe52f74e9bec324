/* The first program of an initrd whose image is protected: it opens the root of imagekit.verity=, and the sealed disk.

   It is /init there, and does what boot (../boot.c) does in other initrds; boot itself comes after it, in the root. A
   program of its own because it is as large again, and what it can do no other image needs.

     sealed.c     this: in which order
     verity.c     the root that the command line means
     seal.c       the sealed disk: a first boot, and every other one
     policy.c     when the TPM gives the key
     secret.c     the key in the TPM
     luks.c       the header for the recovery key
     mapper.c     device-mapper
     tpm.c, commands.c, nv.c   a TPM's language

   Where anything is not as it has to be, it tells what, and the machine does what panic= says: there is no shell and no
   question. */

#include "sealed.h"

#define ROOT_ON_DISK "/etc/imagekit/initrd"

/* root.c calls it when the root is there, and nothing of it has run. */
static const char *mount_more(const struct place *root, const char *below)
{
    return access(SEAL, F_OK) ? NULL : open_sealed(root, below);
}

static const char *open_root(const char *wanted, int times, struct place *place)
{
    if (times > 1) return "said twice"; /* one of them by somebody who could not change the signed one */
    return open_verified(wanted, place);
}

static int enter(void)
{
    char wanted[LONGEST];
    struct root root = {.mount_more = mount_more};
    int times = argument("imagekit.verity", wanted, sizeof wanted);
    if (!times) {
        if (!argument("root", wanted, sizeof wanted)) return give_up("the kernel's command line has no", "root=");
        if (wait_for_device(wanted, &root.place)) return give_up("there is no root", wanted);
        return go_to(&root);
    }
    const char *wrong = open_root(wanted, times, &root.place);
    root.is_verified = 1;
    if (wrong) event("verity %s", wrong);
    return wrong ? give_up("there is no root that the signed command line means:", wrong) : go_to(&root);
}

/* The root is this initrd: boot goes on with it. */
static int stay(void)
{
    static char *argv[] = {"init", NULL}, *env[] = {PATH, NULL};
    const char *wrong = mount_more(NULL, "");
    if (wrong) return give_up("there is no way on:", wrong);
    execve("/usr/lib/imagekit/boot", argv, env);
    return give_up("cannot run", "/usr/lib/imagekit/boot");
}

int main(void)
{
    prepare();
    return access(ROOT_ON_DISK, F_OK) ? stay() : enter();
}
