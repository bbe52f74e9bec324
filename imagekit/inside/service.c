/* Services: what their run and finish scripts call, and how all of them are stopped. runsv supervises. */

#include "boot.h"
#include <sys/file.h>

/* The services in the order of the table; it is made on the host, so it is not judged here. */
int read_table(struct service **services)
{
    static struct service all[MOST_SERVICES];
    char line[LONGEST];
    int n = 0;
    FILE *file = fopen("/etc/imagekit/table", "re");
    while (file && n < MOST_SERVICES && fgets(line, sizeof line, file)) {
        struct service *s = &all[n];
        if (sscanf(line, "%255s %d %1023s %1023[^\n]", s->name, &s->stop_timeout, s->after, s->condition) == 4) n++;
    }
    if (file) fclose(file);
    *services = all;
    return n;
}

/* Whether a list with commas holds a name. */
int names(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *p = list; (p = strstr(p, name)); p++)
        if ((p == list || p[-1] == ',') && (!p[length] || p[length] == ',')) return 1;
    return 0;
}

int wait_for_services(char **names)
{
    while (*names)
        if (count("service ready %s", *names)) names++;
        else wait_for_growth(-1);
    return 0;
}

/* start NAME [user=USER] [after=SERVICE]... [env=NAME=VALUE]... -- COMMAND, in the service's folder.
   The lock on `run` is free when the exec has happened: that is how ready.c knows. */
int start_service(char **words)
{
    const char *name = words[0];
    struct orders orders = read_orders(words + 1);
    flock(open("run", O_RDONLY | O_CLOEXEC), LOCK_EX);
    wait_for_services(orders.after);
    event("service start %s", name);
    event("service failed %s %s", name, become(&orders)); /* while the lock is ours */
    return 127;
}

/* Tell the runsv of a service: d(own), k(ill), (e)x(it); see runsv(8). */
static int tell(const char *name, const char *what)
{
    char path[LONGEST];
    snprintf(path, sizeof path, SERVICES "/%s/supervise/control", name);
    int control = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t n = write(control, what, 1);
    close(control);
    return n == 1;
}

/* end NAME RESTART CODE SIGNAL, as runsv gives them to finish: CODE is -1 where a signal ended the service. */
int end_service(char **words)
{
    const char *name = words[0], *restart = words[1];
    int code = atoi(words[2]) >= 0 ? atoi(words[2]) : 128 + (atoi(words[3]) & 127);
    int stays_down = !strcmp(restart, "never") || (!strcmp(restart, "on-failure") && !code);
    event("service exit %s %d", name, code);
    if (count("shutdown")) return 0;
    if (stays_down) tell(name, "d");
    int was_ready = count("service ready %s", name), deaths = count("service exit %s", name);
    if (count("service failed %s", name)) return 0;
    if (stays_down && code) event("service failed %s ended with %d and is not restarted", name, code);
    else if (stays_down && !was_ready) event("service failed %s ended before it was ready", name);
    else if (!was_ready && deaths == 2)
        event("service failed %s died twice before it was ready, last with %d", name, code);
    return 0;
}

/* Whether a service does not run and will not be started again: byte 17 of runsv's status is what it wants, 19 the
   state. No status means no runsv. */
static int is_down(const char *name)
{
    char path[LONGEST];
    unsigned char status[20] = {0};
    snprintf(path, sizeof path, SERVICES "/%s/supervise/status", name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(file, status, sizeof status);
    close(file);
    return n < 20 || (status[17] == 'd' && !status[19]);
}

static int is_needed(const struct service *all, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!all[i].is_down && names(all[i].after, name)) return 1;
    return 0;
}

/* One look at a service that is to stop; runsv itself gets three seconds more than the service. */
static void push_down(struct service *s)
{
    if (!s->began) {
        s->began = milliseconds();
        tell(s->name, "d");
    }
    int64_t late = milliseconds() - s->began - s->stop_timeout;
    if (late > 0 && !s->was_killed) s->was_killed = tell(s->name, "k");
    s->is_down = is_down(s->name) || late > 3000;
}

/* Stop every service, those that others come after last; who does not obey in time is killed. */
void stop_services(void)
{
    struct service *all;
    int n = read_table(&all), up = n;
    while (up) {
        up = 0;
        for (struct service *s = all; s < all + n; s++) {
            if (!s->is_down && !is_needed(all, n, s->name)) push_down(s);
            up += !s->is_down;
        }
        if (up) usleep(5000);
    }
}
