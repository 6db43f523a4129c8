/* SPDX-License-Identifier: MIT */
/*
 * Places each tensor of the output in a file.
 *
 * Files and order are those of the first input. Where an element's size changes, the largest come
 * first, as safetensors itself writes them: readers map the data, and want it aligned.
 */
#include "ckpt/path.h"
#include "core/mem.h"
#include "merge/plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int compare_jobs(const void *left, const void *right)
{
    const struct lofi__job *a = left, *b = right;
    if (a->file != b->file) return a->file < b->file ? -1 : 1;
    if (a->kind->bits != b->kind->bits) return a->kind->bits > b->kind->bits ? -1 : 1;
    return a->order < b->order ? -1 : 1;
}

/* Keeps the files of the first input. */
static void assign_files(const struct lofi__plan *plan, uint64_t *count)
{
    const lofi_checkpoint *first = plan->sources[0];
    for (uint64_t i = 0; i < plan->job_count; i++)
        plan->jobs[i].file = (uint64_t)(plan->jobs[i].places[0]->file - first->files);
    *count = first->file_count;
}

/* Fills shards of the size that is asked for. */
static void assign_shards(const struct lofi__plan *plan, uint64_t *count)
{
    uint64_t file = 0, used = 0;
    for (uint64_t i = 0; i < plan->job_count; i++) {
        struct lofi__job *job = &plan->jobs[i];
        if (used > 0 &&
            (used > plan->options.shard_bytes || job->bytes > plan->options.shard_bytes - used)) {
            file++;
            used = 0;
        }
        used += job->bytes; /* of sizes of files, and of one tensor at most beyond them */
        job->file = file;
    }
    *count = file + 1;
}

static int has_new_sizes(const struct lofi__plan *plan)
{
    for (uint64_t i = 0; i < plan->job_count; i++)
        if (plan->jobs[i].kind->bits != plan->jobs[i].places[0]->entry->kind->bits) return 1;
    return 0;
}

/* The length of a name without "-00001-of-00002". */
static size_t without_number(const char *name, size_t length)
{
    static const char form[] = "-#####-of-#####";
    const size_t bytes = sizeof form - 1;

    if (length <= bytes) return length;
    const char *end = name + length - bytes;
    for (size_t i = 0; i < bytes; i++)
        if (form[i] == '#' ? end[i] < '0' || end[i] > '9' : end[i] != form[i]) return length;
    return length - bytes;
}

/* The name before and after ".safetensors.index", without ".json": "model", or "model.fp16". */
static char *stem_of_index(const char *name)
{
    const char *file = strstr(name, LOFI__FILE_END);
    const char *variant = file + strlen(LOFI__FILE_END);
    const size_t end = strlen(variant) - strlen(".json");
    const char *index = strstr(variant, ".index");
    const size_t before = (size_t)(index - variant), behind = end - before - strlen(".index");

    return lofi__text_create("%.*s%.*s%.*s", (int)(file - name), name, (int)before, variant,
                             (int)behind, index + strlen(".index"));
}

/* The names of shards begin with this stem, so that a reader that looks for the first input's files
 * finds the output's: "model", "model.fp16", "adapter_model" ... A file by itself may have any
 * name. */
static char *stem_of(const lofi_checkpoint *first)
{
    const char *name = first->files[0].name;

    if (first->index_path != NULL && lofi__path_is_index(first->index_path))
        return stem_of_index(lofi__path_last(first->index_path));
    if (first->index_path != NULL || first->folder == NULL ||
        !lofi__path_ends_with(name, LOFI__FILE_END))
        return lofi__text_create("model");
    const size_t length = without_number(name, strlen(name) - strlen(LOFI__FILE_END));
    return lofi__text_create("%.*s", (int)length, name);
}

static char *name_of(const struct lofi__plan *plan, const char *stem, uint64_t file)
{
    if (plan->options.shard_bytes == 0)
        return lofi__text_create("%s", plan->sources[0]->files[file].name);
    if (plan->output_count == 1) return lofi__text_create("%s" LOFI__FILE_END, stem);
    return lofi__text_create("%s-%05" PRIu64 "-of-%05" PRIu64 LOFI__FILE_END, stem, file + 1,
                             plan->output_count);
}

static lofi_status place_jobs(struct lofi__plan *plan)
{
    for (uint64_t i = 0; i < plan->job_count; i++) {
        struct lofi__job *job = &plan->jobs[i];
        struct lofi__output *output = &plan->outputs[job->file];
        if (output->job_count++ == 0) output->first_job = i;
        job->begin = output->data_bytes;
        if (!__builtin_add_overflow(output->data_bytes, job->bytes, &output->data_bytes)) continue;
        lofi_set_error("%s: the output would be too large", plan->options.out);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

/* The variant of "model.fp16" is "fp16"; a point in a name that is not known is no variant. */
static const char *variant_of(const char *stem)
{
    static const char *const known[] = {"model.", "adapter_model.", "diffusion_pytorch_model."};

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strncmp(stem, known[i], strlen(known[i])) == 0) return stem + strlen(known[i]);
    return NULL;
}

/* A variant stands before the ending: model.fp16.safetensors, model.safetensors.index.fp16.json. */
static char *index_of(const char *stem)
{
    const char *variant = variant_of(stem);

    if (variant == NULL) return lofi__text_create("%s" LOFI__INDEX_END, stem);
    return lofi__text_create("%.*s" LOFI__FILE_END ".index.%s.json", (int)(variant - 1 - stem),
                             stem, variant);
}

/* The first input's index keeps its name, unless readers would not find it by that. */
static char *name_index(const lofi_checkpoint *first, const char *stem)
{
    if (first->index_path == NULL || !lofi__path_is_index(first->index_path)) return index_of(stem);
    return lofi__path_name(first->index_path);
}

static lofi_status name_files(struct lofi__plan *plan)
{
    const lofi_checkpoint *first = plan->sources[0];
    const int is_cut_anew = plan->options.shard_bytes > 0;
    char *stem = stem_of(first);
    int is_named = stem != NULL;

    for (uint64_t i = 0; i < plan->output_count && is_named; i++) {
        struct lofi__output *output = &plan->outputs[i];
        output->name = name_of(plan, stem, i);
        if (output->name != NULL)
            output->path = plan->is_folder ? lofi__path_join(plan->options.out, output->name)
                                           : lofi__text_create("%s", plan->options.out);
        is_named = output->path != NULL;
    }
    if (is_named && (is_cut_anew ? plan->output_count > 1 : first->index_path != NULL)) {
        plan->index_name = name_index(first, stem);
        is_named = plan->index_name != NULL;
    }
    lofi__mem_destroy(stem);
    return is_named ? LOFI_OK : LOFI_NO_MEMORY;
}

lofi_status lofi__plan_lay_out(struct lofi__plan *plan)
{
    uint64_t count = 0;

    plan->is_folder = plan->sources[0]->folder != NULL || plan->options.shard_bytes > 0;
    if (plan->options.shard_bytes > 0)
        assign_shards(plan, &count);
    else
        assign_files(plan, &count);
    if (has_new_sizes(plan) && plan->job_count > 1)
        qsort(plan->jobs, plan->job_count, sizeof *plan->jobs, compare_jobs);
    plan->outputs = lofi__mem_create(count, sizeof *plan->outputs);
    if (plan->outputs == NULL) return LOFI_NO_MEMORY;
    plan->output_count = count;
    lofi_status st = name_files(plan);
    if (st == LOFI_OK) st = place_jobs(plan);
    return st;
}
