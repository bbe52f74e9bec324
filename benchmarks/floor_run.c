// The least that entering a root costs: a mount namespace, the machine's folders, pivot_root, execve. No checks.
//     floor_run ROOT PROGRAM ARGUMENT...
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DO(call) if ((call) < 0) { perror(#call); return 125; }

int main(int argc, char **argv) {
    if (argc < 3) return 125;
    DO(unshare(CLONE_NEWNS));
    DO(mount(0, "/", 0, MS_REC | MS_SLAVE, 0));
    DO(mount(argv[1], argv[1], 0, MS_BIND, 0));
    DO(chdir(argv[1]));
    DO(mount("/proc", "proc", 0, MS_BIND | MS_REC, 0));
    DO(mount("/sys", "sys", 0, MS_BIND | MS_REC, 0));
    DO(mount("/dev", "dev", 0, MS_BIND | MS_REC, 0));
    DO(mount("tmpfs", "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"));
    DO(mount("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"));
    DO(syscall(SYS_pivot_root, ".", "."));
    DO(umount2(".", MNT_DETACH));
    DO(chdir("/"));
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
