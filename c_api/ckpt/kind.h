/* SPDX-License-Identifier: MIT */
/* The dtypes of the safetensors format, and what an average does with each. */
#ifndef LOFI_CKPT_KIND_H
#define LOFI_CKPT_KIND_H

#include "lofi.h"

enum lofi__kind_class {
    LOFI__KIND_FLOAT,  /* averaged */
    LOFI__KIND_EXACT,  /* integers and bool: must be equal, or the first's are taken */
    LOFI__KIND_OPAQUE, /* floats without arithmetic here: must be equal */
};

struct lofi__kind {
    const char *name; /* as the format spells it */
    unsigned bits;    /* of one element: packed formats have fewer than 8 */
    unsigned lanes;   /* numbers in one element: 2 if complex */
    enum lofi__kind_class class;
    lofi_dtype dtype; /* of a lane; read for KIND_FLOAT only */
};

/* NULL for a name that the format does not have. */
const struct lofi__kind *lofi__kind_of(const char *name, size_t length);
/* Takes a dtype as a person writes it ("bf16", "BF16" or "bfloat16") if numbers can be converted to
 * it. */
const struct lofi__kind *lofi__kind_parse(const char *word);

#endif /* LOFI_CKPT_KIND_H */
