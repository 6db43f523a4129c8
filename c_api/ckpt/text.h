/* SPDX-License-Identifier: MIT */
/* Text whose length is counted first, and which is written then by the same calls. */
#ifndef LOFI_CKPT_TEXT_H
#define LOFI_CKPT_TEXT_H

#include <stddef.h>
#include <string.h>

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
