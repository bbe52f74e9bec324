/* Early boot and the services' way into and out of life, in one static program.

   A shell would be shorter, but each fork and exec costs milliseconds under emulation, and each program that runs for
   the first time tens of them: between the kernel and the first service there is nothing but this and runit.

   By its names:
     /init                            mount, load modules, configure the network, become runit      (early.c)
                                      in an initrd with /etc/imagekit/initrd: find the root of      (root.c)
                                      root=, go there, and be its /init
     /etc/runit/1, 2, 3               runit's stages                                                (stage.c)
     /etc/runit/ctrlaltdel            runit calls it for Ctrl-Alt-Del                               (stage.c)
     poweroff, reboot, halt [-f]      end the machine; at once with -f                              (stage.c)
     /usr/lib/imagekit/dhcp           udhcpc calls it about a lease                                 (network.c)

   By its first word, as the services' and steps' scripts call it:
     step KIND NAME HOW... -- COMMAND run a command of onboot or onshutdown to its end              (run.c)
     start NAME HOW... -- COMMAND     become a service, when those it comes after are ready         (service.c)
     end NAME RESTART CODE SIGNAL     note that a service ended                                     (service.c)
     wait SERVICE...                  sleep until services are ready                                (service.c)
     event WORDS...                   note an event                                                 (event.c)
     grow DISK ID [WRITES]            enlarge a partition up to the end of its disk                 (table.c)

   HOW is user=NAME, after=SERVICE, timeout=SECONDS, env=NAME=VALUE. It is an interpreter too: the first line of such a
   script is #!/usr/lib/imagekit/boot, each further line is a word, in which \n is a line end and \\ a backslash; what
   the script is called with follows. imagekit/early.py writes them, and lists the events. */

#include "boot.h"

struct verb {
    const char *name;
    int (*obey)(char **words);
    int words; /* at least */
};

static const struct verb NAMES[] = {
    {"init", init, 0},
    {"1", stage1, 0},
    {"2", stage2, 0},
    {"3", stage3, 0},
    {"ctrlaltdel", reboot_soon, 0},
    {"reboot", reboot_soon, 0},
    {"poweroff", power_off_soon, 0},
    {"halt", power_off_soon, 0},
    {"dhcp", take_lease, 1},
    {NULL, NULL, 0},
};

static const struct verb VERBS[] = {
    {"step", step, 4},
    {"start", start_service, 3},
    {"end", end_service, 4},
    {"wait", wait_for_services, 0},
    {"event", note, 1},
    {"grow", grow_partition, 2},
    {NULL, NULL, 0},
};

static const struct verb *find(const struct verb *verbs, const char *name, char **words)
{
    int n = 0;
    while (words[n]) n++;
    for (; verbs->name; verbs++)
        if (!strcmp(verbs->name, name)) return verbs->words <= n ? verbs : NULL;
    return NULL;
}

/* In place: backslash and n become a line end, two backslashes one. */
static void unescape(char *from)
{
    char *to = from;
    for (; *from; from++, to++) {
        *to = *from;
        if (*from == '\\' && from[1]) *to = *++from == 'n' ? '\n' : *from;
    }
    *to = 0;
}

/* The words of a script, then those that it was called with. */
static int read_script(const char *path, char **given, char **words)
{
    static char text[LARGEST_SCRIPT];
    int n = 0, file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    if (size <= 0 || !strchr(text, '\n')) return 0;
    for (char *line = strchr(text, '\n') + 1, *end; (end = strchr(line, '\n')) && n < MOST_WORDS; line = end + 1) {
        *end = 0;
        unescape(words[n++] = line);
    }
    while (*given && n < MOST_WORDS) words[n++] = *given++;
    return n;
}

int main(int argc, char **argv)
{
    static char *words[MOST_WORDS + 1];
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    const struct verb *verb = find(NAMES, name, argv + 1);
    if (verb) return verb->obey(argv + 1);
    if (argc > 1 && strchr(argv[1], '/') && read_script(argv[1], argv + 2, words)) argv = words;
    else if (argc > 1) argv++;
    if ((verb = find(VERBS, *argv, argv + 1))) return verb->obey(argv + 1);
    fprintf(stderr, "boot: wrong words; imagekit/inside/boot.c has the right ones\n");
    return 2;
}
