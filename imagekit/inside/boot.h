/* What the files of the boot program share; boot.c says what it is. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SERVICES "/etc/imagekit/services"
#define EVENTS "/run/imagekit/events"
#define CHANGES "/run/imagekit/changes"
#define PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum {
    LONGEST = 1024, /* bytes of an event, a path, a line of the table */
    MOST_WORDS = 512, /* of a script */
    LARGEST_SCRIPT = 131072, /* bytes */
    MOST_SERVICES = 256,
}; /* imagekit/early.py refuses more */

/* ---- event.c ---- */

int64_t milliseconds(void);
void write_file(const char *path, int flags, const char *text);
void event(const char *form, ...) __attribute__((format(printf, 1, 2)));
int count(const char *form, ...) __attribute__((format(printf, 1, 2)));
int wait_for_growth(int64_t until);
void complain(const char *form, ...) __attribute__((format(printf, 1, 2)));
int note(char **words);

/* ---- early.c ---- */

int init(char **words);

/* ---- prepare.c ---- */

void prepare(void);

/* ---- root.c, device.c, changes.c: a root that lies on a disk ---- */

struct place { /* a block device: a whole disk, or a partition of one */
    char name[64], disk[64];
    int number; /* of the partition; 0 for a whole disk */
};

struct table;

struct search { /* for a partition on any disk */
    const char *name; /* for messages; /dev/NAME where there is no `look` */
    int (*look)(struct table *table, void *wanted); /* its number on a disk, 0 when it is not there */
    void *wanted;
    int is_told;        /* whether a second one is looked for, and told */
    const int *is_seen; /* set by `look` on the disk that should have it: then it is not waited for much longer */
};

struct root { /* where the root is, and what is mounted below it before it is gone to */
    struct place place;
    int is_verified; /* block by block */
    const char *(*mount_more)(const struct place *place, const char *below);
};

int enter_root(void);
int go_to(const struct root *root);
int give_up(const char *what, const char *which);
int argument(const char *name, char *value, size_t size);
int wait_for(const struct search *search, struct place *place);
int wait_for_device(const char *wanted, struct place *place);
void name_place(struct place *place, const char *disk, int number);
const char *all_devices(void);
const char *mount_changes(const char *wanted);
void enlarge_partition(const struct place *place);
int mount_files(const char *path, const char *folder, unsigned long flags);
void grow_files(const char *path, const char *folder);
void grow_changes(void);

/* ---- stage.c ---- */

int stage1(char **words);
int stage2(char **words);
int stage3(char **words);
int reboot_soon(char **words);
int power_off_soon(char **words);

/* ---- run.c: what start and step have in common ---- */

struct orders { /* NAME=VALUE words, "--", then the command */
    const char *user;
    double timeout;
    char *after[MOST_WORDS], *env[MOST_WORDS + 3];
    int afters, envs;
    char **argv;
};

struct orders read_orders(char **words);
const char *become(const struct orders *orders);
int step(char **words);

/* ---- service.c ---- */

struct service { /* a line of /etc/imagekit/table: NAME STOP_MILLISECONDS AFTER,AFTER CONDITION, with "-" for none */
    char name[256], after[LONGEST], condition[LONGEST];
    int stop_timeout;
    int is_started, is_ready, was_killed, is_down;
    int64_t began, last;
    int socket, family, was_open, was_asked; /* of an http: condition */
    int pid;                       /* of a command: condition */
};

int read_table(struct service **services);
int names(const char *list, const char *name);
int start_service(char **words);
int end_service(char **words);
void stop_services(void);
int wait_for_services(char **names);

/* ---- network.c ---- */

struct lease {
    char interface[16], address[64], gateway[64], servers[256], domain[256];
    int prefix, seconds;
};

void set_network(void);
void wake_interface(const char *interface);
void apply(const struct lease *lease);
int take_lease(char **words);

/* ---- lease.c ---- */

void keep_lease(const char *interface);

/* ---- ready.c ---- */

int report_ready(void);

/* ---- table.c: partition tables ---- */

enum { SECTOR = 512, MOST_PARTITIONS = 128 };

struct table { /* of one disk */
    int disk, is_gpt, writes; /* writes: how many more there may be; below 0: as many as it takes */
    uint64_t sectors;
    uint8_t mbr[SECTOR], header[SECTOR], entries[MOST_PARTITIONS * 128];
};

struct extent { /* in sectors */
    uint64_t start, sectors;
};

const char *read_partitions(struct table *table, const char *path, int flags);
int find_partition(struct table *table, const char *id);
int find_labelled(struct table *table, const char *label);
void label_of(struct table *table, int number, char label[37]);
int is_of_type(struct table *table, int number, const uint8_t type[16]);
struct extent partition(struct table *table, int number);
const char *enlarge(struct table *table, int number, int *grown);
int tell_kernel(struct table *table, int number);
int grow_partition(char **words);
