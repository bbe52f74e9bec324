/* The order of versions: that of the UAPI Group's "Version Format Specification", by which systemd-boot sorts.

   An update that this order calls newer is the one that is started first. imagekit/disk/slots.py has the same. */

#include "slots.h"

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static int is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

static int counts(char c) { return is_digit(c) || is_letter(c) || c == '~' || c == '-' || c == '^' || c == '.'; }

/* Numbers are higher than words; without their leading zeros the longer one is, or the first other digit tells. */
static int compare_numbers(const char **a, const char **b)
{
    if (!is_digit(**a) || !is_digit(**b)) return is_digit(**a) - is_digit(**b);
    while (**a == '0') ++*a;
    while (**b == '0') ++*b;
    size_t n = strspn(*a, "0123456789"), m = strspn(*b, "0123456789");
    int order = n != m ? (n > m) - (n < m) : strncmp(*a, *b, n);
    *a += n, *b += m;
    return order;
}

static int compare_words(const char **a, const char **b)
{
    for (; is_letter(**a) && is_letter(**b); ++*a, ++*b)
        if (**a != **b) return **a - **b; /* capitals come first */
    return is_letter(**a) - is_letter(**b);
}

int compare_versions(const char *a, const char *b)
{
    static const char MARKS[] = "~-^."; /* "1~rc" is before "1", "1^a" behind it and before "1.1" */
    for (int order;;) {
        while (*a && !counts(*a)) a++;
        while (*b && !counts(*b)) b++;
        for (const char *mark = MARKS; *mark; mark++) {
            if (*mark == '-' && (!*a || !*b)) return !!*a - !!*b; /* the end is behind '~' alone */
            if (*a == *mark && *b == *mark) {
                a++, b++;
                goto next;
            }
            if (*a == *mark || *b == *mark) return *b == *mark ? 1 : -1;
        }
        if (is_digit(*a) || is_digit(*b)) order = compare_numbers(&a, &b);
        else order = compare_words(&a, &b);
        if (order) return order;
    next:;
    }
}
