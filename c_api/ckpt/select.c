/* SPDX-License-Identifier: MIT */
#include "ckpt/select.h"

#include <string.h>

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
    memset(selection, 0, sizeof *selection);
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

int lofi__selection_has(const struct lofi__selection *selection, const char *name)
{
    if (selection->has_only && regexec(&selection->only, name, 0, NULL, 0) != 0) return 0;
    return !selection->has_skip || regexec(&selection->skip, name, 0, NULL, 0) != 0;
}
