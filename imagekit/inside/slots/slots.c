/* Updates of an image that lies in two slots, in one static program.

   By its name:
     imagekit-update FILE|-  write an update into the slot that does not run       (update.c, updatefile.c)
   By its first word:
     watch                   see whether a new image is healthy, and keep it so    (watch.c)
     blessed                 whether the image that runs was kept before: code 0   (watch.c)
     keep                    keep the image that runs, healthy or not              (watch.c)
     compare A B             print -1, 0 or 1: the order of versions               (version.c)
   Which slot and which UKI is disk.c's, the boot partition's file system fat.c's and fatchange.c's. */

#include "slots.h"

static int compare(char **words)
{
    int order = words[0] && words[1] ? compare_versions(words[0], words[1]) : 0;
    printf("%d\n", (order > 0) - (order < 0));
    return !words[0] || !words[1];
}

static const struct {
    const char *name;
    int (*obey)(char **words);
} VERBS[] = {
    {"imagekit-update", install},
    {"watch", watch},
    {"blessed", is_blessed},
    {"keep", keep},
    {"compare", compare},
};

int main(int argc, char **argv)
{
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    for (int from = 0; from < 2 && from < argc; from++, name = argv[1])
        for (size_t i = 0; i < sizeof VERBS / sizeof *VERBS; i++)
            if (name && !strcmp(VERBS[i].name, name)) return VERBS[i].obey(argv + from + 1);
    fprintf(stderr, "slots: wrong words; imagekit/inside/slots/slots.c has the right ones\n");
    return 2;
}
