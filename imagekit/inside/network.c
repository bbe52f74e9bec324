/* The network, by ioctl(): a shell with ip(8) would cost a fork and exec for each step. Also udhcpc's script. */

#include "boot.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

struct in6_request { /* struct in6_ifreq of linux/ipv6.h, which musl's headers exclude */
    struct in6_addr address;
    uint32_t prefix;
    int interface;
};

struct in6_route { /* struct in6_rtmsg of linux/ipv6_route.h */
    struct in6_addr target, source, gateway;
    uint32_t type;
    uint16_t target_length, source_length;
    uint32_t metric;
    unsigned long info;
    uint32_t flags;
    int interface;
};

static struct ifreq request_for(const char *interface)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    return request;
}

static struct sockaddr ipv4(uint32_t address)
{
    struct sockaddr_in full = {.sin_family = AF_INET, .sin_addr = {address}};
    struct sockaddr plain;
    memcpy(&plain, &full, sizeof plain);
    return plain;
}

static int set_up(int control, const char *interface)
{
    struct ifreq request = request_for(interface);
    if (ioctl(control, SIOCGIFFLAGS, &request)) return -1;
    request.ifr_flags |= IFF_UP;
    return ioctl(control, SIOCSIFFLAGS, &request);
}

static int set_ipv4(int control, const char *interface, uint32_t address, int prefix)
{
    struct ifreq request = request_for(interface);
    request.ifr_addr = ipv4(address);
    if (ioctl(control, SIOCSIFADDR, &request)) return -1;
    request.ifr_netmask = ipv4(prefix ? htonl(~0U << (32 - prefix)) : 0);
    return ioctl(control, SIOCSIFNETMASK, &request) || set_up(control, interface);
}

static int set_ipv6(int control, const char *interface, struct in6_addr address, int prefix)
{
    struct in6_request request = {address, (uint32_t)prefix, (int)if_nametoindex(interface)};
    int family = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int failed = set_up(control, interface) || ioctl(family, SIOCSIFADDR, &request);
    close(family);
    return failed;
}

/* ADDRESS/PREFIX of either family. */
static int set_address(int control, const char *interface, char *address)
{
    struct in_addr v4;
    struct in6_addr v6;
    char *slash = strchr(address, '/');
    int prefix = slash ? atoi(slash + 1) : -1;
    if (slash) *slash = 0;
    if (inet_pton(AF_INET, address, &v4) == 1) return set_ipv4(control, interface, v4.s_addr, prefix < 0 ? 24 : prefix);
    if (inet_pton(AF_INET6, address, &v6) == 1) return set_ipv6(control, interface, v6, prefix < 0 ? 64 : prefix);
    errno = EINVAL;
    return -1;
}

static int set_gateway(int control, const char *interface, const char *gateway)
{
    struct in_addr v4;
    struct in6_route v6 = {.metric = 1, .flags = RTF_UP | RTF_GATEWAY, .interface = (int)if_nametoindex(interface)};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = (char *)interface};
    if (inet_pton(AF_INET6, gateway, &v6.gateway) == 1) {
        int family = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        int failed = ioctl(family, SIOCADDRT, &v6) && errno != EEXIST;
        close(family);
        return failed;
    }
    if (inet_pton(AF_INET, gateway, &v4) != 1) return errno = EINVAL;
    route.rt_dst = route.rt_genmask = ipv4(0);
    route.rt_gateway = ipv4(v4.s_addr);
    return ioctl(control, SIOCADDRT, &route) && errno != EEXIST;
}

static void configure(int control, const char *interface, char *address, const char *gateway)
{
    if (!set_address(control, interface, address) && (!*gateway || !set_gateway(control, interface, gateway))) {
        event("network up");
    } else {
        complain("network %s: %s", interface, strerror(errno));
    }
}

/* The loopback, and what /etc/imagekit/network says: "static IFACE ADDRESS/PREFIX GATEWAY" is done at once,
   "dhcp IFACE" by a process of its own that never holds up the boot. */
void set_network(void)
{
    char line[LONGEST] = "", interface[IFNAMSIZ], address[64], gateway[64] = "";
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    FILE *file = fopen("/etc/imagekit/network", "re");
    set_up(control, "lo");
    if (file && fgets(line, sizeof line, file)) fclose(file);
    if (sscanf(line, "static %15s %63s %63s", interface, address, gateway) >= 2)
        configure(control, interface, address, gateway);
    close(control);
    if (sscanf(line, "dhcp %15s", interface) == 1 && !fork()) keep_lease(interface);
}

/* Bring an interface up that has no address yet. */
void wake_interface(const char *interface)
{
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    set_up(control, interface);
    close(control);
}

/* Configure the interface, and /etc/resolv.conf, which leads here. */
void apply(const struct lease *lease)
{
    char address[128], servers[sizeof lease->servers];
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    FILE *file = fopen("/run/imagekit/resolv.conf", "we");
    if (file && *lease->domain) fprintf(file, "search %s\n", lease->domain);
    strcpy(servers, lease->servers);
    for (char *server = strtok(servers, " "); file && server; server = strtok(NULL, " "))
        fprintf(file, "nameserver %s\n", server);
    if (file) fclose(file);
    snprintf(address, sizeof address, "%s/%d", lease->address, lease->prefix);
    configure(control, lease->interface, address, lease->gateway);
    close(control);
}

static const char *given(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

/* dhcp WHAT, as udhcpc calls it, with the lease in its environment. */
int take_lease(char **words)
{
    struct lease lease = {.prefix = *given("mask") ? atoi(given("mask")) : 24};
    snprintf(lease.interface, sizeof lease.interface, "%s", given("interface"));
    snprintf(lease.address, sizeof lease.address, "%s", given("ip"));
    snprintf(lease.gateway, sizeof lease.gateway, "%.*s", (int)strcspn(given("router"), " "), given("router"));
    snprintf(lease.servers, sizeof lease.servers, "%s", given("dns"));
    snprintf(lease.domain, sizeof lease.domain, "%s", given("domain"));
    if (!strcmp(*words, "deconfig")) wake_interface(lease.interface);
    if (!strcmp(*words, "bound")) apply(&lease);
    return 0;
}
