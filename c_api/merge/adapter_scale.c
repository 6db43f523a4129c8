/* SPDX-License-Identifier: MIT */
/*
 * Rank and scale of a module, as PEFT finds them: patterns are regular expressions for the end of
 * the module's name, and the first that matches counts. Python's expressions are not those of the C
 * library; what both read alike is all that PEFT's users write there, and the rest is refused.
 */
#include "ckpt/path.h"
#include "ckpt/select.h"
#include "core/mem.h"
#include "merge/adapter.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define PATTERN_MOST 1000
#define USUAL_TRIES 64

/* "(?:" and lazy "*?" are Python's. Bounds and references backwards are refused because the C
 * library takes any amount of memory or time for those that a stranger may write. */
static int is_foreign(const char *pattern)
{
    static const char *const words[] = {"(?", "*?", "+?", "??", "{"};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strstr(pattern, words[i]) != NULL) return 1;
    for (const char *c = pattern; (c = strchr(c, '\\')) != NULL; c++)
        if (c[1] >= '0' && c[1] <= '9') return 1;
    return strlen(pattern) > PATTERN_MOST;
}

static lofi_status matches(const struct lofi__adapter *adapter, const char *pattern,
                           const char *module, int *is_match)
{
    struct lofi__selection selection = {0};
    char *whole = lofi__text_create("^(.*\\.)?(%s)$", pattern);

    if (whole == NULL) return LOFI_NO_MEMORY;
    lofi_status st =
        is_foreign(pattern) ? LOFI_INVALID : lofi__selection_create(whole, NULL, &selection);
    if (st == LOFI_OK)
        st = lofi__selection_has(&selection, module, is_match);
    else if (st == LOFI_INVALID)
        lofi_set_error("%s: '%.200s' is a pattern that is not understood here: write it without "
                       "Python's own expressions",
                       adapter->path, pattern);
    lofi__selection_clear(&selection);
    lofi__mem_destroy(whole);
    return st;
}

/* The number for the module: of the first pattern that matches, or of `key`. 0: there is none. */
static lofi_status look_up(const struct lofi__adapter *adapter, const char *patterns,
                           const char *key, const char *module, double *number)
{
    yyjson_val *root = yyjson_doc_get_root(adapter->doc), *pattern, *value;
    yyjson_val *found = yyjson_obj_get(root, key);
    size_t i, count;
    int is_match = 0;

    yyjson_obj_foreach(yyjson_obj_get(root, patterns), i, count, pattern, value)
    {
        const char *text = lofi__json_text(pattern);
        if (is_match || text == NULL) continue;
        lofi_status st = matches(adapter, text, module, &is_match);
        if (st != LOFI_OK) return st;
        if (is_match) found = value;
    }
    *number = yyjson_is_num(found) ? yyjson_get_num(found) : 0;
    return LOFI_OK;
}

/* PEFT wraps the model in two modules, whose names come first. */
static const char *inner_name(const char *module)
{
    static const char wrapped[] = "base_model.model.";
    const size_t length = sizeof wrapped - 1;
    return strncmp(module, wrapped, length) == 0 ? module + length : module;
}

lofi_status lofi__adapter_scale(const struct lofi__adapter *adapter, const char *module,
                                size_t length, uint64_t rank, double *scale)
{
    yyjson_val *root = yyjson_doc_get_root(adapter->doc);
    const int is_stable = yyjson_get_bool(yyjson_obj_get(root, "use_rslora"));
    double r = 0, alpha = 0;
    char *name = lofi__text_create("%.*s", (int)length, module);

    if (name == NULL) return LOFI_NO_MEMORY;
    lofi_status st = look_up(adapter, "rank_pattern", "r", inner_name(name), &r);
    if (st == LOFI_OK)
        st = look_up(adapter, "alpha_pattern", "lora_alpha", inner_name(name), &alpha);
    if (st == LOFI_OK && r != (double)rank) {
        lofi_set_error(
            "%s: the module '%.200s' is to have the rank %g, and its weights have %" PRIu64,
            adapter->path, name, r, rank);
        st = LOFI_INVALID;
    } else if (st == LOFI_OK && !(alpha != 0 && alpha - alpha == 0)) {
        lofi_set_error("%s: the lora_alpha of the module '%.200s' is missing, or no number other "
                       "than 0",
                       adapter->path, name);
        st = LOFI_INVALID;
    }
    lofi__mem_destroy(name);
    if (st == LOFI_OK) *scale = is_stable ? alpha / sqrt(r) : alpha / r;
    return st;
}

/* A pattern for this module and no other. */
static char *write_pattern(const struct lofi__adapter_module *module)
{
    char *name = lofi__text_create("%.*s", (int)module->length, module->name);
    char *pattern = name != NULL ? lofi__mem_create(2 * module->length + 2, 1) : NULL;
    char *to = pattern;

    if (pattern != NULL) {
        *to++ = '^';
        for (const char *c = inner_name(name); *c != '\0'; c++) {
            if (strchr(".^$*+?()[]{}|\\", *c) != NULL) *to++ = '\\';
            *to++ = *c;
        }
    }
    lofi__mem_destroy(name);
    return pattern;
}

/* A whole number stays one, where rounding has taken it from that. */
static yyjson_mut_val *number(yyjson_mut_doc *doc, double value)
{
    const double whole = nearbyint(value);
    const int is_whole = fabs(value - whole) <= 1e-12 * fabs(value) && fabs(whole) < 1e15;
    return is_whole ? yyjson_mut_sint(doc, (int64_t)whole) : yyjson_mut_real(doc, value);
}

static int put_value(yyjson_mut_doc *doc, yyjson_mut_val *object, const char *key,
                     yyjson_mut_val *value)
{
    yyjson_mut_val *name = yyjson_mut_strcpy(doc, key);
    return name != NULL && value != NULL && yyjson_mut_obj_put(object, name, value);
}

/* A module of a rank and scale that many have, so that few need patterns. */
static const struct lofi__adapter_module *find_usual(const struct lofi__adapter_module *modules,
                                                     uint64_t count)
{
    uint64_t most = 0;
    const struct lofi__adapter_module *usual = modules;

    for (uint64_t i = 0; i < count && i < USUAL_TRIES; i++) {
        uint64_t equal = 0;
        for (uint64_t j = i; j < count; j++)
            equal += modules[j].rank == modules[i].rank && modules[j].scale == modules[i].scale;
        if (equal > most) usual = &modules[i];
        if (equal > most) most = equal;
        if (most >= count - i) break;
    }
    return usual;
}

static int put_patterns(yyjson_mut_doc *doc, yyjson_mut_val *root,
                        const struct lofi__adapter_module *modules, uint64_t count)
{
    const struct lofi__adapter_module *usual = find_usual(modules, count);
    yyjson_mut_val *ranks = yyjson_mut_obj(doc), *alphas = yyjson_mut_obj(doc);
    const double usual_alpha = usual->scale * (double)usual->rank;
    int is_done = ranks != NULL && alphas != NULL;

    for (uint64_t i = 0; i < count && is_done; i++) {
        const double alpha = modules[i].scale * (double)modules[i].rank;
        if (modules[i].rank == usual->rank && alpha == usual_alpha) continue;
        char *pattern = write_pattern(&modules[i]);
        is_done = pattern != NULL;
        if (is_done && modules[i].rank != usual->rank)
            is_done = put_value(doc, ranks, pattern, yyjson_mut_uint(doc, modules[i].rank));
        if (is_done && alpha != usual_alpha)
            is_done = put_value(doc, alphas, pattern, number(doc, alpha));
        lofi__mem_destroy(pattern);
    }
    return is_done && put_value(doc, root, "r", yyjson_mut_uint(doc, usual->rank)) &&
           put_value(doc, root, "lora_alpha", number(doc, usual_alpha)) &&
           put_value(doc, root, "rank_pattern", ranks) &&
           put_value(doc, root, "alpha_pattern", alphas) &&
           put_value(doc, root, "use_rslora", yyjson_mut_bool(doc, false)) &&
           put_value(doc, root, "init_lora_weights", yyjson_mut_bool(doc, true));
}

lofi_status lofi__adapter_write(const struct lofi__adapter *adapter,
                                const struct lofi__adapter_module *modules, uint64_t count,
                                char **text, size_t *bytes)
{
    const yyjson_write_flag flags = YYJSON_WRITE_PRETTY_TWO_SPACES | YYJSON_WRITE_ALLOW_INF_AND_NAN;
    yyjson_mut_doc *doc = yyjson_doc_mut_copy(adapter->doc, &lofi__json_memory);
    yyjson_mut_val *root = yyjson_mut_doc_get_root(doc);
    char *written = NULL;

    if (root != NULL && put_patterns(doc, root, modules, count))
        written = yyjson_mut_write_opts(doc, flags, &lofi__json_memory, bytes, NULL);
    yyjson_mut_doc_free(doc);
    if (written == NULL) return LOFI_NO_MEMORY;
    *text = written;
    return LOFI_OK;
}
