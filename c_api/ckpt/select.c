/* SPDX-License-Identifier: MIT */
#include "ckpt/select.h"

#include <ctype.h>
#include <stddef.h>
#include <string.h>

/* Returns the place behind the brackets at `at`; `escape` gets their backslash, if there is one. */
static const char *skip_brackets(const char *at, const char **escape)
{
    const char *const begin = at + 1 + (at[1] == '^');

    at = begin + (*begin == ']'); /* stands for itself there */
    while (*at != '\0' && *at != ']') {
        const char *end = NULL;
        if (*at == '\\' && *escape == NULL) *escape = at;
        if (*at == '[' && at[1] != '\0' && strchr(":.=", at[1]) != NULL) { /* [:digit:] */
            for (end = at + 2; *end != '\0' && !(end[0] == at[1] && end[1] == ']'); end++)
                ;
        }
        if (end == NULL || *end == '\0')
            at++;
        else
            at = end + 2;
    }
    return *at == ']' ? at + 1 : at;
}

/* Finds an escape that POSIX does not have: the C library would read it as something else than its
 * writer meant, "\d" as "d", "[\w.]" as a backslash, "w" and ".". NULL: there is none. */
static const char *find_foreign(const char *expression)
{
    const char *at = expression, *escape = NULL;

    while (*at != '\0' && escape == NULL) {
        if (*at == '[') {
            at = skip_brackets(at, &escape);
        } else if (*at != '\\' || at[1] == '\0') {
            at++;
        } else {
            if (isalpha((unsigned char)at[1]) && strchr("wWsSbB", at[1]) == NULL) escape = at;
            at += 2;
        }
    }
    return escape;
}

static lofi_status compile(const char *expression, const char *name, regex_t *regex)
{
    char text[256];
    const char *foreign = find_foreign(expression);
    if (foreign != NULL) {
        lofi_set_error("%s '%.200s': '%.2s' is not POSIX there; write [0-9] for a digit, and in "
                       "brackets every character as itself",
                       name, expression, foreign);
        return LOFI_INVALID;
    }
    const int error = regcomp(regex, expression, REG_EXTENDED | REG_NOSUB);
    if (error == 0) return LOFI_OK;
    regerror(error, regex, text, sizeof text);
    lofi_set_error("%s '%.200s' is no regular expression: %s", name, expression, text);
    return LOFI_INVALID;
}

lofi_status lofi__selection_create(const char *only, const char *skip,
                                   struct lofi__selection *selection)
{
    *selection = (struct lofi__selection){0};
    lofi_status st = only != NULL ? compile(only, "only", &selection->only) : LOFI_OK;
    if (st != LOFI_OK) return st;
    selection->has_only = only != NULL;
    st = skip != NULL ? compile(skip, "skip", &selection->skip) : LOFI_OK;
    if (st == LOFI_OK) selection->has_skip = skip != NULL;
    return st;
}

void lofi__selection_clear(struct lofi__selection *selection)
{
    if (selection->has_only) regfree(&selection->only);
    if (selection->has_skip) regfree(&selection->skip);
    selection->has_only = selection->has_skip = 0;
}

/* Long expressions and names take memory of the C library. */
static lofi_status search(const regex_t *regex, const char *name, int *is_found)
{
    const int error = regexec(regex, name, 0, NULL, 0);
    *is_found = error == 0;
    if (error == 0 || error == REG_NOMATCH) return LOFI_OK;
    lofi_set_error("out of memory for a regular expression and the tensor '%.200s'", name);
    return LOFI_NO_MEMORY;
}

lofi_status lofi__selection_has(const struct lofi__selection *selection, const char *name,
                                int *is_selected)
{
    int is_skipped = 0;
    lofi_status st = LOFI_OK;

    *is_selected = 1;
    if (selection->has_only) st = search(&selection->only, name, is_selected);
    if (selection->has_skip && st == LOFI_OK) st = search(&selection->skip, name, &is_skipped);
    if (is_skipped) *is_selected = 0;
    return st;
}

lofi_status lofi_names_select(const char *only, const char *skip, const char *const *names,
                              size_t count, unsigned char *is_selected)
{
    struct lofi__selection selection;

    if (count > 0 && (names == NULL || is_selected == NULL)) {
        lofi_set_error("names and is_selected must not be NULL");
        return LOFI_INVALID;
    }
    lofi_status st = lofi__selection_create(only, skip, &selection);
    for (size_t i = 0; i < count && st == LOFI_OK; i++) {
        int has = 0;
        st = lofi__selection_has(&selection, names[i], &has);
        is_selected[i] = (unsigned char)has;
    }
    lofi__selection_clear(&selection);
    return st;
}
