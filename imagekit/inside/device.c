/* Block devices: which one is meant by root=, and waiting until it is there. */

#include "boot.h"
#include <dirent.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#define BLOCK "/sys/class/block"

enum { PATIENCE = 30, LOUD = 1000, PAUSE = 100 }; /* seconds; milliseconds */

/* The value of NAME=VALUE on the kernel's command line, the last one as the kernel does, cut to fit; how many there
   are. */
int argument(const char *name, char *value, size_t size)
{
    static char line[8192];
    size_t length = strlen(name);
    int found = 0, file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(file, line, sizeof line - 1);
    close(file);
    line[n > 0 ? n : 0] = *value = 0;
    char *rest = line;
    for (char *word; (word = strsep(&rest, " \n")) && strcmp(word, "--");)
        if (!strncmp(word, name, length) && word[length] == '=')
            found += snprintf(value, size, "%s", word + length + 1) > 0;
    return found;
}

/* A number that sysfs has of a block device; 0 when it has none. */
static long long number_of(const char *name, const char *what)
{
    char path[LONGEST], text[32] = "";
    snprintf(path, sizeof path, BLOCK "/%s/%s", name, what);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    (void)!read(file, text, sizeof text - 1);
    close(file);
    return atoll(text);
}

static int is_there(const char *name)
{
    char path[LONGEST];
    snprintf(path, sizeof path, "/dev/%s", name);
    return number_of(name, "size") > 0 && !access(path, F_OK);
}

/* Block devices of some size in the order of their names; memory and loops over files are no disks. */
static int is_disk(const struct dirent *entry)
{
    const char *name = entry->d_name;
    return *name != '.' && strncmp(name, "loop", 4) && strncmp(name, "ram", 3) && number_of(name, "size") > 0;
}

static int disks(struct dirent ***entries) { return scandir(BLOCK, entries, is_disk, alphasort); }

/* The kernel's rule: a p stands between two numbers (bdevname() in block/genhd.c). */
void name_place(struct place *place, const char *disk, int number)
{
    char last = disk[strlen(disk) - 1];
    snprintf(place->disk, sizeof place->disk, "%s", disk);
    snprintf(place->name, sizeof place->name, last >= '0' && last <= '9' ? "%.50sp%d" : "%.50s%d", disk, number);
    place->number = number;
}

/* /dev/NAME: sysfs has a partition's folder below that of its disk. */
static int find_by_name(const char *name, struct place *place)
{
    char path[LONGEST], target[LONGEST] = "";
    if (!is_there(name) || strchr(name, '/') || strlen(name) >= sizeof place->name) return -1;
    snprintf(path, sizeof path, BLOCK "/%s", name);
    ssize_t n = readlink(path, target, sizeof target - 1);
    snprintf(place->name, sizeof place->name, "%s", name);
    if (!(place->number = (int)number_of(name, "partition")) || n <= 0) return place->number = 0;
    *strrchr(target, '/') = 0;
    snprintf(place->disk, sizeof place->disk, "%.63s", strrchr(target, '/') + 1);
    return 0;
}

/* The number of the partition that is looked for on a disk; 0 when it has none. */
static int find_on(const char *disk, const struct search *search)
{
    static struct table table;
    char path[LONGEST];
    snprintf(path, sizeof path, "/dev/%s", disk);
    int number = read_partitions(&table, path, O_RDONLY) ? 0 : search->look(&table, search->wanted);
    close(table.disk);
    return number;
}

static int look_for_id(struct table *table, void *id) { return find_partition(table, id); }

/* Of several disks with that id, which are copies, the first is taken, and told. */
static int find_on_disks(const struct search *search, struct place *place)
{
    struct dirent **entries;
    int number, found = 0;
    for (int i = 0, n = disks(&entries); i < n && (!found || search->is_told); i++) {
        const char *name = entries[i]->d_name;
        if (number_of(name, "partition") || !(number = find_on(name, search))) continue;
        if (found) complain("%s has %s as well: %s is taken", name, search->name, place->name);
        if (found) break;
        name_place(place, name, number);
        found = is_there(place->name); /* or the kernel still looks for partitions */
    }
    return found ? 0 : -1;
}

static int find_device(const struct search *search, struct place *place)
{
    if (search->look) return find_on_disks(search, place);
    return strncmp(search->name, "/dev/", 5) ? -1 : find_by_name(search->name + 5, place);
}

/* Sleep until the kernel tells of a device (netlink(7), NETLINK_KOBJECT_UEVENT), or for a moment. */
static void wait_for_news(int news)
{
    char told[4096];
    struct pollfd fd = {news, POLLIN, 0};
    poll(&fd, 1, PAUSE);
    while (recv(news, told, sizeof told, 0) > 0) {}
}

/* How long a device is waited for: rootwait=SECONDS, as in Linux 6.7 and later. */
static int64_t deadline(void)
{
    char seconds[8];
    int64_t patience = argument("rootwait", seconds, sizeof seconds) ? atoi(seconds) : PATIENCE;
    return milliseconds() + 1000 * patience;
}

/* Find a partition, however slow its disk comes; -1 when the time is up. */
int wait_for(const struct search *search, struct place *place)
{
    int64_t loud = milliseconds() + LOUD, end = deadline();
    struct sockaddr_nl all = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int news = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    bind(news, (struct sockaddr *)&all, sizeof all);
    int failed, is_told = 0;
    while ((failed = find_device(search, place)) && milliseconds() < end) {
        if (milliseconds() > loud && !is_told++) complain("waiting for %s", search->name);
        if (search->is_seen && *search->is_seen && is_told) break;
        wait_for_news(news);
    }
    close(news);
    return failed ? -1 : 0;
}

/* Find PARTUUID=ID or /dev/NAME. */
int wait_for_device(const char *wanted, struct place *place)
{
    struct search search = {.name = wanted, .is_told = 1};
    if (!strncmp(wanted, "PARTUUID=", 9)) {
        search.look = look_for_id;
        search.wanted = (void *)(wanted + 9);
    }
    return wait_for(&search, place);
}

/* The block devices that there are, for a message. */
const char *all_devices(void)
{
    static char text[LONGEST / 2];
    struct dirent **entries;
    size_t size = 0;
    for (int i = 0, n = disks(&entries); i < n && size < sizeof text; i++) {
        long long half = number_of(entries[i]->d_name, "size"); /* kB, twice */
        size += (size_t)snprintf(text + size, sizeof text - size, "%s%s (%lld kB)", size ? ", " : "",
                                 entries[i]->d_name, half / 2);
    }
    return size ? text : "none: is the driver of the disk in the image's modules?";
}
