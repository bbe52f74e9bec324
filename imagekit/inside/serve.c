/* GET /attest?nonce=NONCE, for a network that may be anybody's: one asker at a time, a few seconds and a page of memory
   for each, and no privileges after the start. The kernel keeps the others waiting, and refuses when they are many. */

#include "boot.h"
#include "attest.h"
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum { WAITING = 16, PATIENCE = 5000 /* milliseconds for the question, and for the answer */, NOBODY = 65534 };

static const char ASKED[] = "GET /attest?nonce=";

static int is_possible(int connection, short what, int64_t until)
{
    struct pollfd one = {connection, what, 0};
    int64_t left = until - milliseconds();
    return left > 0 && poll(&one, 1, (int)left) > 0;
}

/* A whole head of a request; 0 for none in time. */
static int read_head(int connection, char *head, size_t room)
{
    int64_t until = milliseconds() + PATIENCE;
    for (size_t n = 0; n + 1 < room && is_possible(connection, POLLIN, until);) {
        ssize_t more = recv(connection, head + n, room - 1 - n, MSG_DONTWAIT);
        if (more <= 0) return 0;
        head[n += (size_t)more] = 0;
        if (memmem(head, n, "\r\n\r\n", 4)) return 1;
    }
    return 0;
}

static void send_all(int connection, const char *data, size_t size)
{
    int64_t until = milliseconds() + PATIENCE;
    while (size && is_possible(connection, POLLOUT, until)) {
        ssize_t n = send(connection, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0) return;
        data += n;
        size -= (size_t)n;
    }
}

static void answer(int connection, const char *status, const char *body, size_t size)
{
    char head[256];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
                     "Connection: close\r\n\r\n",
                     status, size);
    send_all(connection, head, (size_t)n);
    send_all(connection, body, size);
}

static void complain_to(int connection, const char *status, const char *why)
{
    char body[256];
    int n = snprintf(body, sizeof body, "%s\n", why);
    answer(connection, status, body, (size_t)n);
}

static void converse(int connection)
{
    char head[4096] = "";
    const char *made, *problem;
    size_t size, skipped = sizeof ASKED - 1;
    if (!read_head(connection, head, sizeof head)) return;
    if (strncmp(head, ASKED, skipped)) return complain_to(connection, "404 Not Found", "ask for /attest?nonce=NONCE");
    if (!is_nonce(head + skipped, strcspn(head + skipped, " ")) || strncmp(head + skipped + 2 * NONCE, " HTTP/1.", 8))
        return complain_to(connection, "400 Bad Request", "that is no nonce: 64 digits of hexadecimal, in lower case");
    if ((problem = attestation(head + skipped, &made, &size)))
        return complain_to(connection, "503 Service Unavailable", problem);
    answer(connection, "200 OK", made, size);
}

/* IPv4 and IPv6, or what there is of them. */
static int listen_at(int port)
{
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = v6.sin6_port};
    int yes = 1, no = 0, is_v6 = 1, listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) is_v6 = 0, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (is_v6) setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    if (is_v6 ? bind(listener, (struct sockaddr *)&v6, sizeof v6) : bind(listener, (struct sockaddr *)&v4, sizeof v4))
        return -1;
    return listen(listener, WAITING) ? -1 : listener;
}

/* Whoever finds a fault in here finds a process that may do nothing but ask the TPM, which signs no more for it. */
static int drop_privileges(void)
{
    if (getuid()) return 0;
    return setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

int serve(const char *port)
{
    const char *problem = prepare_attestation();
    int number = atoi(port), listener = number > 0 && number < 65536 ? listen_at(number) : -1;
    if (problem || listener < 0 || drop_privileges()) {
        fprintf(stderr, "imagekit-attest: cannot serve at port %s: %s\n", port, problem ? problem : strerror(errno));
        return 1;
    }
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) {
            usleep(100000); /* out of descriptors or memory: it will not be better at once */
            continue;
        }
        converse(connection);
        close(connection);
    }
}
