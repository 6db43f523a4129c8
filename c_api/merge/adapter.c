/* SPDX-License-Identifier: MIT */
/*
 * Whether adapters fit together. Every key counts but those that say how an adapter was trained:
 * one that is not known here may change what the weights mean. A release of PEFT that does not know
 * a key yet leaves it out, so a key that is missing is compared only if it is known.
 */
#include "merge/adapter.h"
#include "ckpt/path.h"
#include "ckpt/text.h"
#include "core/mem.h"

#include <string.h>
#include <sys/stat.h>

#define CONFIG_MOST ((uint64_t)16 << 20)
#define DEPTH_MAX 16

lofi_status lofi__adapter_open(const lofi_checkpoint *checkpoint, struct lofi__adapter *adapter)
{
    char *text = NULL, *folder = lofi__path_folder(checkpoint->files[0].path);
    size_t length = 0;
    struct stat found;

    *adapter = (struct lofi__adapter){0};
    if (folder != NULL) adapter->path = lofi__path_join(folder, LOFI__ADAPTER_CONFIG);
    lofi_status st = adapter->path != NULL ? LOFI_OK : LOFI_NO_MEMORY;
    if (st == LOFI_OK && stat(adapter->path, &found) == 0) {
        if (checkpoint->folder != NULL) st = lofi__path_check_inside(folder, adapter->path);
        if (st == LOFI_OK) st = lofi__file_read_all(adapter->path, CONFIG_MOST, &text, &length);
        if (st == LOFI_OK) st = lofi__json_check_depth(adapter->path, text, length, DEPTH_MAX);
        if (st == LOFI_OK)
            st = lofi__json_read(adapter->path, text, length, YYJSON_READ_ALLOW_INF_AND_NAN,
                                 &adapter->doc);
    }
    lofi__mem_destroy(text);
    lofi__mem_destroy(folder);
    return st;
}

void lofi__adapter_clear(struct lofi__adapter *adapter)
{
    yyjson_doc_free(adapter->doc);
    lofi__mem_destroy(adapter->path);
    *adapter = (struct lofi__adapter){0};
}

static yyjson_val *get(const struct lofi__adapter *adapter, const char *key)
{
    return yyjson_obj_get(yyjson_doc_get_root(adapter->doc), key);
}

/* They say how it was trained, or which release wrote it. */
static const char *const ignored[] = {
    "peft_version",  "inference_mode", "auto_mapping",        "runtime_config", "loftq_config",
    "eva_config",    "corda_config",   "lora_ga_config",      "velora_config",  "megatron_config",
    "megatron_core", "arrow_config",   "lora_dropout",        "dropout",        "module_dropout",
    "rank_dropout",  "vera_dropout",   "ensure_weight_tying",
};
/* A product of the two can be averaged all the same. */
static const char *const scales[] = {"r", "lora_alpha", "use_rslora", "rank_pattern",
                                     "alpha_pattern"};
/* One that has no value may be any. */
static const char *const names[] = {"base_model_name_or_path", "revision", "task_type"};
/* Without a value they are off. */
static const char *const known[] = {
    "peft_type",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "fan_in_fan_out",
    "use_dora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "init_lora_weights",
    "alora_invocation_tokens",
    "trainable_token_indices",
};
/* Starts that leave the base model as it is; True is the usual one. */
static const char *const harmless_starts[] = {"gaussian", "eva", "orthogonal"};

static int is_nothing(const char *key, yyjson_val *value)
{
    const char *text = yyjson_get_str(value);

    if (strcmp(key, "init_lora_weights") == 0)
        return text == NULL || LOFI__HAS(harmless_starts, text);
    if (strcmp(key, "bias") == 0 && text != NULL) return strcmp(text, "none") == 0;
    return value == NULL || yyjson_is_null(value) || yyjson_is_false(value) ||
           (yyjson_is_ctn(value) && unsafe_yyjson_get_len(value) == 0);
}

/* A value by itself is a list of one. */
static int is_in(yyjson_val *value, yyjson_val *list)
{
    yyjson_val *item;
    size_t i, count;

    if (!yyjson_is_arr(list)) return yyjson_equals(value, list);
    yyjson_arr_foreach(list, i, count, item)
    {
        if (yyjson_equals(value, item)) return 1;
    }
    return 0;
}

static int is_subset(yyjson_val *some, yyjson_val *all)
{
    yyjson_val *item;
    size_t i, count;

    if (!yyjson_is_arr(some)) return is_in(some, all);
    yyjson_arr_foreach(some, i, count, item)
    {
        if (!is_in(item, all)) return 0;
    }
    return 1;
}

/* Lists are sets: PEFT writes them in any order. */
static int are_equal(const char *key, yyjson_val *a, yyjson_val *b)
{
    if (is_nothing(key, a) || is_nothing(key, b)) return is_nothing(key, a) && is_nothing(key, b);
    if (yyjson_is_num(a) && yyjson_is_num(b)) return yyjson_get_num(a) == yyjson_get_num(b);
    if (yyjson_is_arr(a) || yyjson_is_arr(b)) return is_subset(a, b) && is_subset(b, a);
    return yyjson_equals(a, b);
}

/* The JSON of a value, for a sentence. NULL: there is no memory. */
static char *show(yyjson_val *value)
{
    if (value == NULL) return lofi__text_create("not given");
    return lofi__json_write(value);
}

static lofi_status refuse(const char *key, const struct lofi__adapter *first, yyjson_val *a,
                          const struct lofi__adapter *other, yyjson_val *b)
{
    const char *hint = "";
    char *left = show(a), *right = show(b);

    if (LOFI__HAS(scales, key))
        hint = ": the mean of their parts would be no mean of what they do; lora (--lora exact, or "
               "--lora svd=R) averages their products";
    else
        hint = ": force_config (--force-config) averages them all the same";
    if (left != NULL && right != NULL)
        lofi_set_error("the adapters do not fit together: %.100s is %.300s in %s and %.300s in "
                       "%s%s",
                       key, left, first->path, right, other->path, hint);
    const int is_told = left != NULL && right != NULL;
    lofi__mem_destroy(left);
    lofi__mem_destroy(right);
    return is_told ? LOFI_INVALID : LOFI_NO_MEMORY;
}

static lofi_status compare_key(const char *key, const struct lofi__adapter *first,
                               const struct lofi__adapter *other, int may_differ)
{
    yyjson_val *a = get(first, key), *b = get(other, key);
    const int group = LOFI__HAS(scales, key) ? LOFI__DIFFER_SCALES : LOFI__DIFFER_OTHERS;

    if (LOFI__HAS(ignored, key) || (may_differ & group) != 0) return LOFI_OK;
    if (LOFI__HAS(names, key) && (is_nothing(key, a) || is_nothing(key, b))) return LOFI_OK;
    if ((a == NULL || b == NULL) && !LOFI__HAS(known, key) && !LOFI__HAS(scales, key))
        return LOFI_OK;
    return are_equal(key, a, b) ? LOFI_OK : refuse(key, first, a, other, b);
}

lofi_status lofi__adapter_compare(const struct lofi__adapter *first,
                                  const struct lofi__adapter *other, int may_differ)
{
    const struct lofi__adapter *const both[] = {first, other};

    for (int side = 0; side < 2; side++) {
        yyjson_val *key, *value;
        size_t i, count;
        yyjson_obj_foreach(yyjson_doc_get_root(both[side]->doc), i, count, key, value)
        {
            const char *name = lofi__json_text(key);
            if (name == NULL) continue;
            lofi_status st = compare_key(name, first, other, may_differ);
            if (st != LOFI_OK) return st;
        }
    }
    return LOFI_OK;
}

int lofi__adapter_is_product(const struct lofi__adapter *adapter)
{
    static const char *const products[] = {"LORA", "ADALORA", "LOHA",    "LOKR",
                                           "VERA", "XLORA",   "RANDLORA"};
    const char *type = yyjson_get_str(get(adapter, "peft_type"));
    return type != NULL && LOFI__HAS(products, type);
}

lofi_status lofi__adapter_check_lora(const struct lofi__adapter *adapter)
{
    /* With one of these a module does something else than to add the scaled product of A and B. */
    static const char *const others[] = {
        "use_dora",   "lora_bias",   "target_parameters", "use_qalora",
        "use_bdlora", "kasa_config", "monteclora_config", "init_lora_weights"};
    const char *type = yyjson_get_str(get(adapter, "peft_type"));

    if (type == NULL || strcmp(type, "LORA") != 0) {
        lofi_set_error("%s: its peft_type is '%.50s': products are averaged (--lora) of LORA only",
                       adapter->path, type != NULL ? type : "");
        return LOFI_INVALID;
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (is_nothing(others[i], get(adapter, others[i]))) continue;
        char *value = show(get(adapter, others[i]));
        if (value == NULL) return LOFI_NO_MEMORY;
        lofi_set_error("%s: %s is %.100s, so that the adapter adds more than a scaled product of A "
                       "and B, and products are not averaged (--lora): merge each adapter into its "
                       "model, and average the models",
                       adapter->path, others[i], value);
        lofi__mem_destroy(value);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}
