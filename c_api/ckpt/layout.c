/* SPDX-License-Identifier: MIT */
/*
 * Which file each tensor of the output is in, and where.
 *
 * Files and order are those of the first input. Where an element's size changes, the largest come
 * first, as safetensors itself writes them: readers map the data, and want it aligned.
 */
#include "ckpt/path.h"
#include "ckpt/plan.h"
#include "core/mem.h"

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

/* Keeps the first's files. */
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
            (used > plan->options->shard_bytes || job->bytes > plan->options->shard_bytes - used)) {
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

static char *name_of(const struct lofi__plan *plan, uint64_t file)
{
    if (plan->options->shard_bytes == 0)
        return lofi__text_create("%s", plan->sources[0]->files[file].name);
    if (plan->output_count == 1) return lofi__text_create("model.safetensors");
    return lofi__text_create("model-%05" PRIu64 "-of-%05" PRIu64 ".safetensors", file + 1,
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
        lofi_set_error("%s: the output would be too large", plan->options->out);
        return LOFI_INVALID;
    }
    return LOFI_OK;
}

static lofi_status name_index(struct lofi__plan *plan)
{
    const lofi_checkpoint *first = plan->sources[0];
    const int keeps_index = plan->options->shard_bytes == 0 && first->index != NULL;

    if (keeps_index)
        plan->index_name = lofi__path_name(first->index_path);
    else if (plan->output_count > 1)
        plan->index_name = lofi__text_create("model.safetensors.index.json");
    else
        return LOFI_OK;
    return plan->index_name != NULL ? LOFI_OK : LOFI_NO_MEMORY;
}

lofi_status lofi__plan_lay_out(struct lofi__plan *plan)
{
    uint64_t count = 0;

    plan->is_folder = plan->sources[0]->folder != NULL || plan->options->shard_bytes > 0;
    if (plan->options->shard_bytes > 0)
        assign_shards(plan, &count);
    else
        assign_files(plan, &count);
    if (has_new_sizes(plan) && plan->job_count > 1)
        qsort(plan->jobs, plan->job_count, sizeof *plan->jobs, compare_jobs);
    plan->outputs = lofi__mem_create(count, sizeof *plan->outputs);
    if (plan->outputs == NULL) return LOFI_NO_MEMORY;
    plan->output_count = count;
    for (uint64_t i = 0; i < count; i++) {
        plan->outputs[i].name = name_of(plan, i);
        if (plan->outputs[i].name == NULL) return LOFI_NO_MEMORY;
        plan->outputs[i].path = plan->is_folder
                                    ? lofi__path_join(plan->options->out, plan->outputs[i].name)
                                    : lofi__text_create("%s", plan->options->out);
        if (plan->outputs[i].path == NULL) return LOFI_NO_MEMORY;
    }
    lofi_status st = name_index(plan);
    if (st == LOFI_OK) st = place_jobs(plan);
    return st;
}
