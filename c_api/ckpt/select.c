/* SPDX-License-Identifier: MIT */
#include "ckpt/select.h"

static lofi_status compile(const char *expression, const char *name, regex_t *regex)
{
    char text[256];
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
