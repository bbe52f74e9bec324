/* What the files of the guest agent share; agent.c says what it is. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { HELLO = 1, EVENT, EXEC, STDIN, ACK, STDOUT, STDERR, EXIT, ERROR, KILL, PING, PONG, RENEW, BULK, FREE };
enum { MAX_PAYLOAD = 4096, MAX_PIECE = 2048, MAX_REQUEST = 65536, MAX_STREAMS = 8, MAX_ENDED = 64 };

/* ---- wire.c: frames, and the tty that they travel on ---- */

typedef void obey_function(int kind, int stream, const uint8_t *payload, size_t size);

extern char nonce[65];

int64_t now(void); /* nanoseconds of CLOCK_MONOTONIC */
uint32_t get32(const uint8_t *p);
uint64_t get64(const uint8_t *p);
void put(uint8_t *p, uint64_t value, int bytes);
int open_line(const char *name);
int has_room(void);
void send_frame(int kind, int stream, const void *payload, size_t size);
void send_clock(int kind, const void *echo, size_t size);
struct pollfd line_to_poll(void);
void flush_line(void);
void read_line(obey_function *obey);

/* ---- command.c: the commands that run ---- */

enum { COMMAND_FDS = 3 * MAX_STREAMS };

void free_streams(void);
void take_request(int stream, const uint8_t *piece, size_t size, uint64_t offset, int is_last);
void take_stdin(int stream, const uint8_t *piece, size_t size, uint64_t offset, int is_last);
void kill_command(int stream);
void drop_commands(void);
int64_t kill_late(int64_t time);
void reap_commands(void);
void commands_to_poll(struct pollfd *fds);
void serve_commands(const struct pollfd *fds);

/* ---- bulk.c: much output at once ---- */

int send_bulk(int of, int what, int end);
void take_free(const uint8_t *said, size_t length);
int resend_bulk(void);
void drop_bulk(void);

/* ---- builtin.c: what needs no program of the image ---- */

int run_builtin(char **argv);
void close_others(void);

/* ---- health.c, renew.c: what the agent answers and does itself ---- */

size_t tell_health(const char **told);
void renew(const uint8_t *payload, size_t size);
