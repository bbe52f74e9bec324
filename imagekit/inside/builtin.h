/* What the built-in commands share; builtin.c says what they are. */

#include "agent.h"
#include "sha256.h"
#include <sys/stat.h>

/* ---- builtin.c ---- */

int complain_of(const char *what); /* one line on stderr about errno; returns 1, for an exit code */
int put_out(const void *bytes, size_t size);

/* ---- tail.c ---- */

int tell_tails(char **argv);

/* ---- wait.c, follow.c, terminal.c ---- */

int wait_for(char **argv);
int follow(char **argv);
int run_terminal(char **argv);
