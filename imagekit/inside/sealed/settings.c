/* /etc/imagekit/seal: how a disk is sealed, a "key value" per line. It is part of the measured initrd. */

#include "sealed.h"

enum { LONGEST_LINE = 2 * MODULUS + 16 };

static int digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Exactly so many bytes as so many lower-case digits; -1 when it is anything else. */
int from_hex(const char *text, size_t length, uint8_t *bytes, size_t size)
{
    if (length != 2 * size) return -1;
    for (size_t i = 0; i < size; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return -1;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

const char *to_hex(const uint8_t *bytes, size_t size, char *text)
{
    for (size_t i = 0; i < size; i++) sprintf(text + 2 * i, "%02x", bytes[i]);
    return text;
}

static int set_image(struct seal *seal, const char *value)
{
    return snprintf(seal->image, sizeof seal->image, "%s", value) >= (int)sizeof seal->image;
}

static int set_disk(struct seal *seal, const char *value)
{
    return snprintf(seal->disk, sizeof seal->disk, "%s", value) >= (int)sizeof seal->disk;
}

static int set_mount(struct seal *seal, const char *value)
{
    return *value != '/' || snprintf(seal->mount, sizeof seal->mount, "%s", value) >= (int)sizeof seal->mount;
}

static int set_pcrs(struct seal *seal, const char *value)
{
    char *end;
    for (const char *at = value; *at; at = *end ? end + 1 : end) {
        unsigned long pcr = strtoul(at, &end, 10);
        if (end == at || pcr >= MOST_PCRS || (*end && *end != ',')) return -1;
        seal->pcrs |= 1U << pcr;
    }
    return !seal->pcrs;
}

/* 1 for the one word, 0 for the other; -1 is wrong. */
static int which(const char *value, const char *yes, const char *no)
{
    return !strcmp(value, yes) ? 1 : !strcmp(value, no) ? 0 : -1;
}

static int set_policy(struct seal *seal, const char *value)
{
    return (seal->is_signed = which(value, "signed", "exact")) < 0;
}

static int set_recovery(struct seal *seal, const char *value)
{
    return (seal->has_recovery = which(value, "console", "none")) < 0;
}

static int set_secure_boot(struct seal *seal, const char *value)
{
    return (seal->has_secure_boot = which(value, "on", "off")) < 0;
}

static int set_generation(struct seal *seal, const char *value)
{
    char *end;
    seal->generation = strtoull(value, &end, 10);
    return !*value || *end;
}

static int set_public(struct seal *seal, const char *value)
{
    return from_hex(value, strlen(value), seal->modulus, sizeof seal->modulus);
}

static const struct {
    const char *name;
    int (*set)(struct seal *seal, const char *value);
} KEYS[] = {
    {"image", set_image},
    {"disk", set_disk},
    {"mount", set_mount},
    {"pcrs", set_pcrs},
    {"policy", set_policy},
    {"recovery", set_recovery},
    {"secure_boot", set_secure_boot},
    {"generation", set_generation},
    {"public", set_public}, /* only where the policy is signed */
};

enum { NEEDED = (1 << 8) - 1 }; /* all but the last */

/* The bit of a key that was set; 0 when there is no such, or it has no such value. */
static int set(struct seal *seal, const char *name, const char *value)
{
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++)
        if (!strcmp(KEYS[i].name, name)) return KEYS[i].set(seal, value) ? 0 : 1 << i;
    return 0;
}

/* What is wrong with the settings, or NULL; an image that says less than all is none of ours. */
const char *read_settings(const char *path, struct seal *seal)
{
    static char line[LONGEST_LINE];
    FILE *file = fopen(path, "re");
    int is_wrong = !file, found = 0;
    memset(seal, 0, sizeof *seal);
    while (!is_wrong && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, ' ');
        if (value) *value++ = 0;
        int bit = value ? set(seal, line, value) : 0;
        is_wrong = !bit || found & bit;
        found |= bit;
    }
    if (file) fclose(file);
    int wanted = seal->is_signed ? NEEDED << 1 | 1 : NEEDED;
    if (seal->is_signed && !(seal->pcrs >> SIGNED_PCR & 1)) is_wrong = 1;
    return is_wrong || (found & wanted) != wanted ? "settings" : NULL;
}
