/* SPDX-License-Identifier: MIT */
/* Texts: words in a list, and text whose length is counted first and which is written then by the
 * same calls. */
#ifndef LOFI_CKPT_TEXT_H
#define LOFI_CKPT_TEXT_H

#include <stddef.h>
#include <string.h>

/* Tells whether an array of texts has a word. */
#define LOFI__HAS(list, word) lofi__has_word(list, sizeof(list) / sizeof *(list), word)

static inline int lofi__has_word(const char *const *list, size_t count, const char *word)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i], word) == 0) return 1;
    return 0;
}

struct lofi__text {
    char *to; /* NULL: it is only counted */
    size_t length;
};

static inline void lofi__text_put(struct lofi__text *text, const char *from, size_t bytes)
{
    if (text->to != NULL) memcpy(text->to + text->length, from, bytes);
    text->length += bytes;
}

#endif /* LOFI_CKPT_TEXT_H */
