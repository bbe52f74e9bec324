/* What the files of the boot program share; boot.c says what it is. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SERVICES "/etc/imagekit/services"
#define EVENTS "/run/imagekit/events"

enum { LONGEST = 1024 }; /* bytes of an event, a path, a line of a table */

/* ---- event.c ---- */

int64_t milliseconds(void);
void event(const char *form, ...) __attribute__((format(printf, 1, 2)));
int count(const char *form, ...) __attribute__((format(printf, 1, 2)));
int wait_for_growth(int64_t until);
void complain(const char *what);

/* ---- run.c: what start and step have in common ---- */

struct orders { /* NAME=VALUE words, "--", then the command */
    const char *user;
    double timeout;
    char *after[64], *env[256];
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
    int is_started, is_ready, was_told, is_down;
    int64_t began, last;
    int socket, family, was_asked; /* of an http: condition */
    int pid;                       /* of a command: condition */
};

int read_table(struct service **services);
int names(const char *list, const char *name);
int start_service(char **words);
int end_service(char **words);
int stop_services(void);
int wait_for_services(char **names);

/* ---- ready.c ---- */

int report_ready(void);
