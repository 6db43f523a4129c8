/* SPDX-License-Identifier: MIT */
#include "merge/factor_name.h"
#include "ckpt/path.h"

#include <string.h>

static const struct {
    const char *word; /* a whole part of the name between points */
    enum lofi__part part;
} words[] = {
    {"lora_A", LOFI__PART_A},           {"lora_B", LOFI__PART_B},
    {"lora_embedding_A", LOFI__PART_A}, {"lora_embedding_B", LOFI__PART_B},
    {"lora_E", LOFI__PART_OTHER},       {"lora_magnitude_vector", LOFI__PART_OTHER},
    {"hada_w1_a", LOFI__PART_OTHER},    {"lokr_w1", LOFI__PART_OTHER},
    {"lokr_w1_a", LOFI__PART_OTHER},    {"vera_lambda_b", LOFI__PART_OTHER},
};

/* The part between points that begins at `at`. */
static enum lofi__part part_at(const char *at, size_t length)
{
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strlen(words[i].word) == length && memcmp(words[i].word, at, length) == 0)
            return words[i].part;
    return LOFI__PART_NONE;
}

/* "lora_B.bias" belongs to a product, and is none of its matrices. */
static enum lofi__part without_bias(enum lofi__part part, const char *name)
{
    const int is_bias = lofi__path_ends_with(name, ".bias");
    return is_bias && part != LOFI__PART_NONE ? LOFI__PART_OTHER : part;
}

enum lofi__part lofi__part_of(const char *name, size_t *word)
{
    const char *at = name;

    for (;;) {
        const size_t length = strcspn(at, ".");
        const enum lofi__part part = part_at(at, length);
        if (part != LOFI__PART_NONE) {
            *word = (size_t)(at - name);
            return without_bias(part, name);
        }
        if (at[length] == '\0') return LOFI__PART_NONE;
        at += length + 1;
    }
}

char *lofi__part_partner(const char *name)
{
    size_t word = 0;

    if (lofi__part_of(name, &word) != LOFI__PART_A) return lofi__text_create("%s", name);
    const size_t letter = word + strcspn(name + word, ".") - 1; /* the A at its end */
    return lofi__text_create("%.*sB%s", (int)letter, name, name + letter + 1);
}
