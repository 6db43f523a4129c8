/* SPDX-License-Identifier: MIT */
/* The adapter_config.json of PEFT. */
#ifndef LOFI_MERGE_ADAPTER_H
#define LOFI_MERGE_ADAPTER_H

#include "ckpt/checkpoint.h"

#define LOFI__ADAPTER_CONFIG "adapter_config.json"

struct lofi__adapter {
    char *path;      /* of the config */
    yyjson_doc *doc; /* NULL: there is none */
};

/* Reads the config that lies beside the checkpoint's first file, if there is one. LOFI_CORRUPT for
 * one that is no JSON object. Clear the adapter also after an error; one of zeros may be cleared,
 * too. */
lofi_status lofi__adapter_open(const lofi_checkpoint *checkpoint, struct lofi__adapter *adapter);
void lofi__adapter_clear(struct lofi__adapter *adapter);

/* Keys of which two adapters may differ. */
enum {
    LOFI__DIFFER_SCALES = 1, /* ranks and scales: products are averaged */
    LOFI__DIFFER_OTHERS = 2, /* all others: the user says so */
};

/* LOFI_INVALID names a key, and its values, for which the two can't be averaged. Both have a
 * config. */
lofi_status lofi__adapter_compare(const struct lofi__adapter *first,
                                  const struct lofi__adapter *other, int may_differ);

/* LOFI_INVALID for an adapter whose products are not those of LoRA alone, or is no LoRA. */
lofi_status lofi__adapter_check_lora(const struct lofi__adapter *adapter);
/* 1 if PEFT multiplies what it trains, so that a mean of the parts is no mean of the whole. */
int lofi__adapter_is_product(const struct lofi__adapter *adapter);

/* The factor with which PEFT multiplies the product of the module, whose name has `length` bytes.
 * LOFI_INVALID if the config gives it another rank, or no scale. */
lofi_status lofi__adapter_scale(const struct lofi__adapter *adapter, const char *module,
                                size_t length, uint64_t rank, double *scale);

/* One module of an adapter that is written. */
struct lofi__adapter_module {
    const char *name; /* `length` bytes, borrowed */
    size_t length;
    uint64_t rank;
    double scale;
};

/* Writes the config again for these modules; `*text` is of lofi__mem. */
lofi_status lofi__adapter_write(const struct lofi__adapter *adapter,
                                const struct lofi__adapter_module *modules, uint64_t count,
                                char **text, size_t *bytes);

#endif /* LOFI_MERGE_ADAPTER_H */
