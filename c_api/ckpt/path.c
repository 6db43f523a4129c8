/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "ckpt/path.h"
#include "core/mem.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *lofi__text_create(const char *format, ...)
{
    va_list arguments, again;

    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    char *text = length < 0 ? NULL : lofi__mem_create((size_t)length + 1, 1);
    if (text != NULL) vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

char *lofi__path_join(const char *folder, const char *name)
{
    const size_t length = strlen(folder);
    const char *slash = length > 0 && folder[length - 1] == '/' ? "" : "/";
    return lofi__text_create("%s%s%s", folder, slash, name);
}

/* The length without trailing slashes; the root keeps its own. */
static size_t trimmed(const char *path)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return length;
}

char *lofi__path_folder(const char *path)
{
    size_t length = trimmed(path);
    while (length > 0 && path[length - 1] != '/')
        length--;
    if (length == 0) return lofi__text_create(".");
    while (length > 1 && path[length - 1] == '/')
        length--;
    return lofi__text_create("%.*s", (int)length, path);
}

char *lofi__path_name(const char *path)
{
    const size_t length = trimmed(path);
    size_t begin = length;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    return lofi__text_create("%.*s", (int)(length - begin), path + begin);
}

const char *lofi__path_last(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

int lofi__path_ends_with(const char *path, const char *end)
{
    const size_t length = strlen(path), end_length = strlen(end);
    return length >= end_length && strcmp(path + length - end_length, end) == 0;
}

int lofi__path_is_index(const char *path)
{
    const char *file = strstr(lofi__path_last(path), LOFI__FILE_END ".");
    return file != NULL && strstr(file, ".index.") != NULL && lofi__path_ends_with(path, ".json");
}

static int is_below(const char *path, const char *folder, size_t length)
{
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

/* .../snapshots/<revision>, and the folders in it, have their files in .../blobs. */
static int is_blob(const char *target, const char *folder)
{
    static const char snapshots[] = "/snapshots/";
    const char *found = folder;

    while ((found = strstr(found, snapshots)) != NULL) {
        const size_t top = (size_t)(found - folder) + 1;
        if (strncmp(target, folder, top) == 0 && is_below(target + top, "blobs", strlen("blobs")))
            return 1;
        found++;
    }
    return 0;
}

lofi_status lofi__path_check_inside(const char *folder, const char *path)
{
    char *real_folder = realpath(folder, NULL);
    if (real_folder == NULL) return lofi__path_failed(folder, "can't be found");
    char *target = realpath(path, NULL);
    if (target == NULL) {
        free(real_folder);
        return lofi__path_failed(path, "can't be found");
    }
    const int is_root = strcmp(real_folder, "/") == 0;
    const int is_inside = is_root || is_below(target, real_folder, strlen(real_folder)) ||
                          is_blob(target, real_folder);
    if (!is_inside) lofi_set_error("%s: it is a link to %s, outside of its folder", path, target);
    free(target);
    free(real_folder);
    return is_inside ? LOFI_OK : LOFI_CORRUPT;
}

lofi_status lofi__path_failed(const char *path, const char *what)
{
    lofi_set_error("%s: %s: %s", path, what, strerror(errno));
    return LOFI_SYSTEM;
}

int lofi__path_is_same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}
