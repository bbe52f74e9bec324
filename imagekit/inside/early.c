/* The first program of the image: makes the machine usable and becomes runit. */

#include "boot.h"

static void name_host(void)
{
    char name[256] = "";
    int file = open("/etc/hostname", O_RDONLY | O_CLOEXEC);
    if (read(file, name, sizeof name - 1) > 0) sethostname(name, strcspn(name, "\n"));
    close(file);
}

/* Beside all else: does an image that is new in its slot prove itself? (slots/watch.c) */
static void watch_slot(void)
{
    static char *argv[] = {"slots", "watch", NULL}, *env[] = {PATH, NULL};
    if (access("/etc/imagekit/slots", F_OK) || fork()) return;
    setsid();
    execve("/usr/lib/imagekit/slots", argv, env);
    complain("cannot run slots: %s", strerror(errno));
    _exit(1);
}

/* Run once, or twice where an initrd finds the root first: events tell that what it prepared has come along. */
int init(char **words)
{
    static char *argv[] = {"runit", NULL}, *env[] = {PATH, NULL}; /* the kernel's holds what it did not understand */
    (void)words;
    if (access(EVENTS, F_OK)) prepare();
    if (!access("/etc/imagekit/initrd", F_OK)) return enter_root();
    name_host();
    set_network(); /* its lease comes while we go on */
    grow_changes();
    watch_slot();
    execve("/usr/sbin/runit", argv, env);
    complain("cannot run runit: %s", strerror(errno));
    return 1;
}
