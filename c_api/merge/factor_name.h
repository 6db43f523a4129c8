/* SPDX-License-Identifier: MIT */
/* The names that PEFT gives to the tensors of adapters. */
#ifndef LOFI_MERGE_FACTOR_NAME_H
#define LOFI_MERGE_FACTOR_NAME_H

#include <stddef.h>

enum lofi__part {
    LOFI__PART_NONE,  /* of no product: averaged by itself */
    LOFI__PART_A,     /* ".lora_A.weight", ".lora_A.<adapter>.weight", ".lora_embedding_A" ... */
    LOFI__PART_B,     /* the same of B */
    LOFI__PART_OTHER, /* of another product or of a norm: DoRA, AdaLoRA, LoHa, LoKr, VeRA */
};

/* What a tensor is by its name; `word` gets the place of "lora_A" or its like in it, behind the
 * module's name and a point, unless it is LOFI__PART_NONE. */
enum lofi__part lofi__part_of(const char *name, size_t *word);

/* The name of the B that belongs to an A; NULL: there is no memory. For lofi__mem_destroy. */
char *lofi__part_partner(const char *name);

#endif /* LOFI_MERGE_FACTOR_NAME_H */
