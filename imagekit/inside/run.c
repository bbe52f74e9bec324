/* Running a command as declared: with exactly its environment, as its user, from a clean state. */

#include "boot.h"
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static char home[LONGEST] = "HOME=/root";

/* The words before "--" say how, those after it what. */
struct orders read_orders(char **words)
{
    struct orders orders = {.user = "root"};
    orders.env[orders.envs++] = PATH;
    orders.env[orders.envs++] = home;
    for (; *words && strcmp(*words, "--"); words++) {
        if (!strncmp(*words, "user=", 5)) orders.user = *words + 5;
        if (!strncmp(*words, "timeout=", 8)) orders.timeout = strtod(*words + 8, NULL);
        if (!strncmp(*words, "after=", 6) && orders.afters < MOST_WORDS) orders.after[orders.afters++] = *words + 6;
        if (!strncmp(*words, "env=", 4) && orders.envs < MOST_WORDS + 2) orders.env[orders.envs++] = *words + 4;
    }
    orders.argv = *words ? words + 1 : words;
    return orders;
}

/* A later setting of a variable replaces an earlier one, which getenv() would find first. */
static void drop_repeated(char **env, int *envs)
{
    for (int i = 0; i < *envs; i++)
        for (int j = i + 1; j < *envs; j++)
            if (!strncmp(env[i], env[j], strcspn(env[i], "=") + 1)) {
                memmove(env + i, env + i + 1, (size_t)(*envs - i) * sizeof *env);
                --*envs;
                i--;
                break;
            }
}

static int take_user(const char *name)
{
    if (!strcmp(name, "root")) return 0;
    struct passwd *user = getpwnam(name);
    if (!user) return -1;
    snprintf(home, sizeof home, "HOME=%s", user->pw_dir);
    return initgroups(name, user->pw_gid) || setgid(user->pw_gid) || setuid(user->pw_uid) ? -1 : 0;
}

/* Become the command; returns only when that fails, with the reason. */
const char *become(const struct orders *orders)
{
    static char reason[LONGEST];
    struct orders mine = *orders;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
    int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    if (null > 2) close(null);
    snprintf(reason, sizeof reason, "cannot become user %s", orders->user);
    if (take_user(orders->user)) return reason;
    drop_repeated(mine.env, &mine.envs);
    mine.env[mine.envs] = NULL;
    execve(mine.argv[0], mine.argv, mine.env);
    snprintf(reason, sizeof reason, "cannot run %s: %s", mine.argv[0], strerror(errno));
    return reason;
}

/* Wait for a child; 0 when it has not ended in time. */
static int wait_in_time(pid_t pid, int *status, double seconds)
{
    int64_t until = milliseconds() + (int64_t)(seconds * 1000), left;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    while (waitpid(pid, status, WNOHANG) != pid) {
        if ((left = until - milliseconds()) <= 0) return 0;
        struct timespec pause = {left / 1000, left % 1000 * 1000000};
        sigtimedwait(&child, NULL, &pause);
    }
    return 1;
}

/* step KIND NAME [timeout=SECONDS] [env=NAME=VALUE]... -- COMMAND: run it to its end; its code is ours. */
int step(char **words)
{
    const char *kind = words[0], *name = words[1];
    struct orders orders = read_orders(words + 2);
    int status = 0;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL); /* wait_in_time takes it */
    event("%s start %s", kind, name);
    pid_t pid = fork();
    if (!pid) {
        setsid(); /* what is late is killed with all that it started */
        complain("%s", become(&orders));
        _exit(127);
    }
    int is_late = !wait_in_time(pid, &status, orders.timeout);
    if (is_late) {
        kill(-pid, SIGKILL);
        waitpid(pid, &status, 0);
    }
    int code = is_late ? 124 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); /* 124 as timeout(1) */
    if (code) event("%s failed %s %d", kind, name, code);
    else event("%s done %s", kind, name);
    return code;
}
