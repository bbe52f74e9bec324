/* The first DHCP exchange (RFC 2131), in a child of /init: udhcpc and its script cost a boot ten times as much.

   Only the plain case is done here: an offer within seconds. When there is none, when the server says no, and when
   half of the lease is over, the rest is udhcpc's, which has met more servers and is started again when it ends. */

#include "boot.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { DISCOVER = 1, OFFER, REQUEST, ACK = 5 }; /* values of option 53, RFC 2132, 9.6 */
enum { MASK = 1, ROUTER = 3, DNS = 6, DOMAIN = 15, WANTED = 50, SECONDS, TYPE = 53, SERVER, LIST, END = 255 };
enum { FIRST_PAUSE = 100, LAST_PAUSE = 1600 }; /* milliseconds between requests, doubled each time: 3 s in all */

struct message { /* RFC 2131, section 2 */
    uint8_t op, type, length, hops;
    uint32_t id;
    uint16_t seconds, flags;
    uint32_t client, yours, next, relay;
    uint8_t hardware[16], name[64], file[128], magic[4], options[312];
};

static const uint8_t MAGIC[4] = {99, 130, 83, 99};

static int open_socket(const char *interface, struct message *m)
{
    int on = 1, s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(68)};
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    if (ioctl(s, SIOCGIFHWADDR, &request)) return -1;
    memcpy(m->hardware, request.ifr_hwaddr.sa_data, 6);
    setsockopt(s, SOL_SOCKET, SO_BROADCAST, &on, sizeof on);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, interface, (socklen_t)strlen(interface) + 1)) return -1;
    return bind(s, (struct sockaddr *)&here, sizeof here) ? -1 : s;
}

static uint8_t *add(uint8_t *to, int option, const void *value, size_t size)
{
    *to++ = (uint8_t)option;
    *to++ = (uint8_t)size;
    memcpy(to, value, size);
    return to + size;
}

static void ask(int s, struct message *m, int type, uint32_t wanted, uint32_t server)
{
    static const uint8_t list[] = {MASK, ROUTER, DNS, DOMAIN, SECONDS};
    struct sockaddr_in all = {.sin_family = AF_INET, .sin_port = htons(67), .sin_addr = {INADDR_BROADCAST}};
    uint8_t *end = m->options, kind = (uint8_t)type;
    memset(m->options, 0, sizeof m->options);
    end = add(end, TYPE, &kind, 1);
    if (wanted) end = add(end, WANTED, &wanted, 4);
    if (server) end = add(end, SERVER, &server, 4);
    end = add(end, LIST, list, sizeof list);
    *end = END;
    (void)!sendto(s, m, sizeof *m, 0, (struct sockaddr *)&all, sizeof all);
}

/* An option of a message that has `size` bytes; its length, or 0 when it is absent or cut. */
static int option(const struct message *m, size_t size, int wanted, const uint8_t **value)
{
    const uint8_t *p = m->options, *end = (const uint8_t *)m + size;
    while (p + 1 < end && *p != END) {
        if (!*p) { /* padding */
            p++;
            continue;
        }
        if (p + 2 + p[1] > end) return 0;
        if (*p == wanted) return *value = p + 2, p[1];
        p += 2 + p[1];
    }
    return 0;
}

static uint32_t number(const struct message *m, size_t size, int wanted)
{
    const uint8_t *value;
    uint32_t found = 0;
    if (option(m, size, wanted, &value) >= 4) memcpy(&found, value, 4);
    return found;
}

/* Wait for an answer to our request; its size, or 0 when none came in time. */
static size_t hear(int s, const struct message *asked, struct message *m, int64_t until)
{
    struct pollfd fd = {s, POLLIN, 0};
    for (int64_t left; (left = until - milliseconds()) > 0;) {
        if (poll(&fd, 1, (int)left) <= 0) continue;
        ssize_t size = recv(s, m, sizeof *m, 0);
        if (size < (ssize_t)offsetof(struct message, options)) continue;
        if (m->op == 2 && m->id == asked->id && !memcmp(m->magic, MAGIC, 4)) return (size_t)size;
    }
    return 0;
}

static void read_lease(const struct message *m, size_t size, struct lease *lease)
{
    const uint8_t *value;
    int length = option(m, size, DNS, &value);
    uint32_t router = number(m, size, ROUTER), mask = ntohl(number(m, size, MASK));
    lease->seconds = (int)(ntohl(number(m, size, SECONDS)) & INT32_MAX);
    for (lease->prefix = 0; mask & 0x80000000; mask <<= 1) lease->prefix++;
    inet_ntop(AF_INET, &m->yours, lease->address, sizeof lease->address);
    if (router) inet_ntop(AF_INET, &router, lease->gateway, sizeof lease->gateway);
    for (int n = 0; n + 4 <= length && strlen(lease->servers) + INET_ADDRSTRLEN < sizeof lease->servers; n += 4) {
        char server[INET_ADDRSTRLEN];
        strcat(lease->servers, n ? " " : "");
        strcat(lease->servers, inet_ntop(AF_INET, value + n, server, sizeof server));
    }
    length = option(m, size, DOMAIN, &value);
    snprintf(lease->domain, sizeof lease->domain, "%.*s", length, length ? (const char *)value : "");
    lease->domain[strspn(lease->domain, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-. ")] = 0;
}

/* Discover, request; 1 when a lease was granted. */
static int exchange(int s, struct message *asked, struct lease *lease)
{
    struct message heard;
    uint32_t wanted = 0, server = 0;
    for (int64_t pause = FIRST_PAUSE; pause <= LAST_PAUSE; pause *= 2) {
        int64_t until = milliseconds() + pause;
        ask(s, asked, wanted ? REQUEST : DISCOVER, wanted, server);
        for (size_t size; (size = hear(s, asked, &heard, until));) {
            const uint8_t *type;
            if (!option(&heard, size, TYPE, &type)) continue;
            if (*type == ACK && wanted) return read_lease(&heard, size, lease), 1;
            if (*type != OFFER || wanted) return 0;
            wanted = heard.yours;
            server = number(&heard, size, SERVER);
            ask(s, asked, REQUEST, wanted, server);
        }
    }
    return 0;
}

/* Run udhcpc, again when it ends. */
static void hand_over(char *interface)
{
    char *argv[] = {"udhcpc", "-f", "-i", interface, "-s", "/usr/lib/imagekit/dhcp", /* requests, a second between */
                    "-t", "5", "-T", "1", "-A", "3", NULL}; /* them, and seconds until it tries again */
    for (;; sleep(5)) {
        pid_t pid = fork();
        if (!pid) {
            execve("/usr/bin/busybox", argv, (char *[]){PATH, NULL});
            _exit(127);
        }
        if (pid > 0) waitpid(pid, NULL, 0);
    }
}

/* Give an interface an address, and keep it. */
void keep_lease(const char *interface)
{
    struct lease lease = {0};
    struct message asked = {.op = 1, .type = 1, .length = 6, .flags = htons(0x8000)}; /* answer by broadcast, please */
    int s;
    snprintf(lease.interface, sizeof lease.interface, "%s", interface);
    asked.id = (uint32_t)milliseconds() * 2654435761U ^ (uint32_t)getpid();
    memcpy(asked.magic, MAGIC, 4);
    if (!if_nametoindex(interface)) complain("network: there is no %s yet", interface);
    while (!if_nametoindex(interface)) sleep(1);
    wake_interface(lease.interface);
    if ((s = open_socket(lease.interface, &asked)) >= 0 && exchange(s, &asked, &lease)) {
        apply(&lease);
        close(s);
        sleep((unsigned)lease.seconds / 2);
    }
    hand_over(lease.interface);
}
