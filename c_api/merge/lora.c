/* SPDX-License-Identifier: MIT */
/* Adapters as inputs: found by the names of their tensors, compared by their configs. */
#include "merge/lora.h"
#include "ckpt/path.h"
#include "core/mem.h"
#include "merge/factor_name.h"

#include <stdlib.h>
#include <string.h>

#define COMPARE_BYTES ((size_t)64 << 10)
#define RANK_MOST 1000000

lofi_status lofi__lora_parse(const char *text, enum lofi__lora_how *how, uint64_t *rank)
{
    static const char svd[] = "svd=";
    const size_t length = sizeof svd - 1;

    *how = LOFI__LORA_PLAIN;
    if (text == NULL) return LOFI_OK;
    if (strcmp(text, "exact") == 0) *how = LOFI__LORA_EXACT;
    if (strncmp(text, svd, length) == 0 && strspn(text + length, "0123456789") > 0) {
        char *end;
        const unsigned long value = strtoul(text + length, &end, 10);
        if (*end == '\0' && value >= 1 && value <= RANK_MOST) *how = LOFI__LORA_SVD;
        *rank = value;
    }
    if (*how != LOFI__LORA_PLAIN) return LOFI_OK;
    lofi_set_error("lora is '%.64s': choose exact, or svd=R with a rank R of at least 1", text);
    return LOFI_INVALID;
}

static int has_products(const lofi_checkpoint *checkpoint)
{
    size_t word;
    for (uint64_t i = 0; i < checkpoint->count; i++)
        if (lofi__part_of(checkpoint->tensors[i].entry->name, &word) != LOFI__PART_NONE) return 1;
    return 0;
}

static int is_adapter(const lofi_checkpoint *checkpoint)
{
    static const char name[] = "adapter_model";
    return strncmp(checkpoint->files[0].name, name, sizeof name - 1) == 0;
}

static lofi_status open_adapters(const struct lofi__plan *plan, struct lofi__lora *lora)
{
    lora->adapters = lofi__mem_create((size_t)plan->source_count, sizeof *lora->adapters);
    if (lora->adapters == NULL) return LOFI_NO_MEMORY;
    for (int s = 0; s < plan->source_count; s++) {
        lora->adapter_count++;
        lofi_status st = lofi__adapter_open(plan->sources[s], &lora->adapters[s]);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

/* Compares those that have a config with the first that has one. */
static lofi_status compare_adapters(const struct lofi__plan *plan, const struct lofi__lora *lora)
{
    const int may_differ = (lora->how != LOFI__LORA_PLAIN ? LOFI__DIFFER_SCALES : 0) |
                           (plan->options.force_config ? LOFI__DIFFER_OTHERS : 0);
    const struct lofi__adapter *first = NULL;

    for (int s = 0; s < lora->adapter_count; s++) {
        const struct lofi__adapter *adapter = &lora->adapters[s];
        if (adapter->doc == NULL) continue;
        if (first == NULL) first = adapter;
        lofi_status st = lofi__adapter_compare(first, adapter, may_differ);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

static lofi_status compare_data(const struct lofi__place *x, const struct lofi__place *y,
                                char *memory, int *are_equal)
{
    const struct lofi__entry *a = x->entry, *b = y->entry;

    *are_equal = a->kind == b->kind && a->dims == b->dims &&
                 memcmp(a->shape, b->shape, (size_t)a->dims * sizeof *a->shape) == 0;
    for (uint64_t done = 0; done < a->bytes && *are_equal; done += COMPARE_BYTES) {
        const uint64_t left = a->bytes - done;
        const size_t count = left < COMPARE_BYTES ? (size_t)left : COMPARE_BYTES;
        lofi_status st = lofi__file_read(x->file, lofi__place_begin(x) + done, memory, count);
        if (st == LOFI_OK)
            st = lofi__file_read(y->file, lofi__place_begin(y) + done, memory + COMPARE_BYTES,
                                 count);
        if (st != LOFI_OK) return st;
        *are_equal = memcmp(memory, memory + COMPARE_BYTES, count) == 0;
    }
    return LOFI_OK;
}

/* Tells whether all sources have the same bits in all tensors of this part. */
static lofi_status compare_part(const struct lofi__plan *plan, enum lofi__part part, int *are_equal)
{
    const lofi_checkpoint *first = plan->sources[0];
    char *memory = lofi__mem_create(2, COMPARE_BYTES);
    lofi_status st = memory != NULL ? LOFI_OK : LOFI_NO_MEMORY;
    size_t word;

    *are_equal = 1;
    for (uint64_t i = 0; i < first->count && *are_equal && st == LOFI_OK; i++) {
        const struct lofi__place *place = &first->tensors[i];
        if (lofi__part_of(place->entry->name, &word) != part) continue;
        for (int s = 1; s < plan->source_count && *are_equal && st == LOFI_OK; s++) {
            const struct lofi__place *other =
                lofi__checkpoint_find(plan->sources[s], place->entry->name);
            if (other == NULL)
                *are_equal = 0;
            else
                st = compare_data(place, other, memory, are_equal);
        }
    }
    lofi__mem_destroy(memory);
    return st;
}

static int lacks_config(const struct lofi__lora *lora)
{
    for (int s = 0; s < lora->adapter_count; s++)
        if (lora->adapters[s].doc == NULL) return 1;
    return 0;
}

/* Nothing is wrong with the mean of the factors where one of them is the same everywhere. */
static lofi_status warn_of_mean(const struct lofi__plan *plan, const struct lofi__lora *lora)
{
    int are_equal = 0;
    const int is_other =
        lora->adapters[0].doc != NULL && lofi__adapter_check_lora(&lora->adapters[0]) != LOFI_OK;

    if (plan->source_count < 2) return LOFI_OK;
    lofi_status st = LOFI_OK;
    if (!is_other) st = compare_part(plan, LOFI__PART_A, &are_equal);
    if (!is_other && st == LOFI_OK && !are_equal) st = compare_part(plan, LOFI__PART_B, &are_equal);
    if (st != LOFI_OK || are_equal) return st;
    lofi_log(
        LOFI_LOG_WARN,
        "%s: an adapter: the mean of A and the mean of B are not the mean of the products B A, "
        "which is what adapters add to a model: %s%s",
        plan->sources[0]->path,
        is_other ? "merge each into its model, and average the models, for that"
                 : "--lora exact writes that with the ranks added up, --lora svd=R its best "
                   "approximation of rank R",
        lacks_config(lora) ? "; without an " LOFI__ADAPTER_CONFIG " beside each, it is not "
                             "known either whether their scales are the same"
                           : "");
    return LOFI_OK;
}

/* Refuses what has no products to average. */
static lofi_status check_products(const struct lofi__plan *plan, const struct lofi__lora *lora)
{
    if (plan->sources[0]->folder == NULL) {
        lofi_set_error("%s: lora (--lora) writes an " LOFI__ADAPTER_CONFIG
                       ", too: name the folder of the adapter",
                       plan->sources[0]->path);
        return LOFI_INVALID;
    }
    for (int s = 0; s < lora->adapter_count; s++) {
        if (lora->adapters[s].doc == NULL) {
            lofi_set_error("%s: there is no " LOFI__ADAPTER_CONFIG
                           ", which has the scale that lora (--lora) needs",
                           plan->sources[s]->path);
            return LOFI_INVALID;
        }
        lofi_status st = lofi__adapter_check_lora(&lora->adapters[s]);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

lofi_status lofi__lora_begin(struct lofi__plan *plan)
{
    const lofi_checkpoint *first = plan->sources[0];
    const int are_products = has_products(first);
    struct lofi__lora *lora = lofi__mem_create(1, sizeof *lora);

    if (lora == NULL) return LOFI_NO_MEMORY;
    lofi_status st = lofi__lora_parse(plan->options.lora, &lora->how, &lora->rank);
    if (st == LOFI_OK && lora->how != LOFI__LORA_PLAIN && !are_products) {
        lofi_set_error("%s: it is no adapter: it has no tensor such as 'x.lora_A.weight', of which "
                       "lora (--lora) averages the products",
                       first->path);
        st = LOFI_INVALID;
    }
    if (st == LOFI_OK && (are_products || is_adapter(first))) st = open_adapters(plan, lora);
    if (st == LOFI_OK) st = compare_adapters(plan, lora);
    if (st == LOFI_OK && lora->how != LOFI__LORA_PLAIN) {
        st = check_products(plan, lora);
        if (st == LOFI_OK && lora->how == LOFI__LORA_EXACT)
            st = compare_part(plan, LOFI__PART_A, &lora->is_shared);
        plan->lora = lora;
        return st;
    }
    if (st == LOFI_OK && are_products) st = warn_of_mean(plan, lora);
    lofi__lora_destroy(lora);
    return st;
}

void lofi__lora_destroy(struct lofi__lora *lora)
{
    if (lora == NULL) return;
    for (int s = 0; s < lora->adapter_count; s++)
        lofi__adapter_clear(&lora->adapters[s]);
    lofi__mem_destroy(lora->adapters);
    lofi__mem_destroy(lora->modules);
    lofi__mem_destroy(lora->shares);
    lofi__mem_destroy(lora);
}

lofi_status lofi__lora_takes(const struct lofi__plan *plan, const char *name, int is_selected,
                             int *is_taken)
{
    size_t word;
    const enum lofi__part part = plan->lora != NULL ? lofi__part_of(name, &word) : LOFI__PART_NONE;

    *is_taken = part == LOFI__PART_A || part == LOFI__PART_B;
    if (part == LOFI__PART_NONE || (*is_taken && is_selected)) return LOFI_OK;
    if (part == LOFI__PART_OTHER)
        lofi_set_error("%s: the tensor '%.200s' belongs to a product of more than A and B, which "
                       "lora (--lora) does not average",
                       plan->sources[0]->path, name);
    else
        lofi_set_error("%s: only or skip leave out the tensor '%.200s': with lora (--lora) all "
                       "products are averaged",
                       plan->sources[0]->path, name);
    return LOFI_INVALID;
}
