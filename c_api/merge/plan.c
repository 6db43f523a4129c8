/* SPDX-License-Identifier: MIT */
/*
 * The plan of an average: all that can be refused is refused here, before a byte is written.
 *
 * Tensors are matched by name, so that inputs may be cut into shards differently. The first input
 * gives names, shapes, order and files; the others have to fit.
 */
#include "merge/plan.h"
#include "ckpt/path.h"
#include "ckpt/select.h"
#include "core/mem.h"
#include "core/options.h"
#include "kernels/kernels.h"
#include "merge/check.h"
#include "merge/lora.h"
#include "merge/mix.h"
#include "merge/tied.h"

#include <string.h>

static int has_empty(const char *const *texts, int count)
{
    for (int i = 0; i < count; i++)
        if (texts[i] == NULL || texts[i][0] == '\0') return 1;
    return 0;
}

static lofi_status check_options(const lofi_average_files_options *o)
{
    if (o->inputs == NULL || o->input_count < 1)
        lofi_set_error("an average of %d checkpoints: it needs at least one",
                       o->inputs == NULL ? 0 : o->input_count);
    else if (o->out == NULL || o->out[0] == '\0')
        lofi_set_error("the output has no name");
    else if (o->threads < 0)
        lofi_set_error("an average with %d threads", o->threads);
    else if (o->strip_count < 0 || (o->strip_count > 0 && o->strip_prefixes == NULL))
        lofi_set_error("an average with %d prefixes to strip", o->strip_count);
    else if (has_empty(o->strip_prefixes, o->strip_count))
        lofi_set_error("strip_prefix (--strip-prefix) is empty");
    else if (o->base != NULL && !(o->alpha - o->alpha == 0))
        lofi_set_error("alpha is %g: it has to be finite", o->alpha);
    else
        return LOFI_OK;
    return LOFI_INVALID;
}

static lofi_status check_weights(const lofi_average_files_options *o, double *sum)
{
    for (int i = 0; i < o->input_count && o->weights != NULL && !o->raw_weights; i++) {
        if (!(o->weights[i] < 0)) continue;
        lofi_set_error("weight %d is %g: what is below 0 is no part of a mean; raw_weights "
                       "(--no-normalize) takes it as a coefficient",
                       i, o->weights[i]);
        return LOFI_INVALID;
    }
    return lofi__mean_weights(o->weights, o->input_count, o->raw_weights, sum);
}

static lofi_status open_sources(struct lofi__plan *plan)
{
    const lofi_average_files_options *o = &plan->options;
    const int count = o->input_count + (o->base != NULL);

    plan->input_count = o->input_count;
    plan->sources = lofi__mem_create((size_t)count, sizeof(lofi_checkpoint *));
    if (plan->sources == NULL) return LOFI_NO_MEMORY;
    for (int i = 0; i < count; i++) {
        const char *path = i < o->input_count ? o->inputs[i] : o->base;
        lofi_status st = lofi_checkpoint_open(path, &plan->sources[i]);
        if (st != LOFI_OK) return st;
        plan->source_count++;
    }
    return LOFI_OK;
}

static lofi_status strip_prefixes(const struct lofi__plan *plan)
{
    const lofi_average_files_options *o = &plan->options;
    lofi_status st = lofi_checkpoints_strip(plan->sources, plan->source_count, o->strip_prefixes,
                                            o->strip_count);
    /* The only thing that is invalid is a prefix that none has; all others are stripped then. */
    return plan->role != NULL && st == LOFI_INVALID ? LOFI_OK : st;
}

/* Refuses a tensor of one checkpoint that another lacks. */
static lofi_status refuse_missing(const lofi_checkpoint *owner, const struct lofi__place *place,
                                  const lofi_checkpoint *other)
{
    char hint[1024];

    lofi_checkpoints_hint(owner, other, hint, sizeof hint);
    lofi_set_error("the tensor '%.200s' of %s is not in %s%s", place->entry->name,
                   place->file->path, other->path,
                   hint[0] != '\0' ? hint : ", nor is it tied to one that is");
    return LOFI_INVALID;
}

/* Finds what stands for a tensor in a checkpoint that lacks it, or refuses that. */
static lofi_status find_tied(const lofi_checkpoint *owner, const struct lofi__place *place,
                             const lofi_checkpoint *other, const struct lofi__place **found,
                             const char *what)
{
    lofi_status st = lofi__tied_find(owner, place, other, found);
    if (st != LOFI_OK) return st;
    if (*found == NULL) return refuse_missing(owner, place, other);
    lofi_log(LOFI_LOG_WARN,
             "the tensor '%.200s' of %s is not in %s: it is tied to '%.200s', being "
             "equal to it, and %s",
             place->entry->name, place->file->path, other->path, (*found)->entry->name, what);
    return LOFI_OK;
}

/* The shapes of factors may differ by their ranks. */
static lofi_status match(const struct lofi__plan *plan, const struct lofi__place *first,
                         const struct lofi__place **places, int is_factor)
{
    for (int s = 1; s < plan->source_count; s++) {
        places[s] = lofi__checkpoint_find(plan->sources[s], first->entry->name);
        lofi_status st = LOFI_OK;
        if (places[s] == NULL && is_factor)
            return refuse_missing(plan->sources[0], first, plan->sources[s]);
        if (places[s] == NULL)
            st = find_tied(plan->sources[0], first, plan->sources[s], &places[s],
                           "that stands for it there");
        if (st == LOFI_OK && !is_factor) st = lofi__place_check_pair(first, places[s]);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

static enum lofi__work work_of(const struct lofi__plan *plan, const struct lofi__kind *kind)
{
    if (kind->class == LOFI__KIND_FLOAT) return LOFI__WORK_MEAN;
    const int is_first = kind->class == LOFI__KIND_EXACT && plan->options.integers_first;
    return is_first ? LOFI__WORK_COPY : LOFI__WORK_SAME;
}

static lofi_status create_job(const struct lofi__plan *plan, uint64_t i, int is_selected)
{
    const struct lofi__place *first = &plan->sources[0]->tensors[i];
    const struct lofi__place **places = plan->places + i * (uint64_t)plan->source_count;
    struct lofi__job *job = &plan->jobs[i];

    places[0] = first;
    *job = (struct lofi__job){.work = LOFI__WORK_COPY,
                              .kind = first->entry->kind,
                              .places = places,
                              .bytes = first->entry->bytes,
                              .order = i};
    int is_factor = 0;
    lofi_status st = lofi__lora_takes(plan, first->entry->name, is_selected, &is_factor);
    if (st != LOFI_OK || !is_selected) return st;
    job->work = is_factor ? LOFI__WORK_FACTOR : work_of(plan, job->kind);
    st = match(plan, first, places, is_factor);
    if (st != LOFI_OK || (job->work != LOFI__WORK_MEAN && !is_factor)) return st;
    if (plan->kind != NULL && job->kind->lanes == 1) job->kind = plan->kind;
    if (!__builtin_mul_overflow(first->entry->count, job->kind->bits / 8, &job->bytes))
        return LOFI_OK;
    lofi_set_error("%s: the tensor '%.200s' would be too large as %s", first->file->path,
                   first->entry->name, job->kind->name);
    return LOFI_INVALID;
}

/* Refuses a selected tensor that another source has and the first does not. */
static lofi_status check_rest(const struct lofi__plan *plan,
                              const struct lofi__selection *selection)
{
    for (int s = 1; s < plan->source_count; s++) {
        const lofi_checkpoint *c = plan->sources[s];
        for (uint64_t i = 0; i < c->count; i++) {
            const char *name = c->tensors[i].entry->name;
            int is_selected;
            if (lofi__checkpoint_find(plan->sources[0], name) != NULL) continue;
            lofi_status st = lofi__selection_has(selection, name, &is_selected);
            if (st != LOFI_OK) return st;
            if (!is_selected) continue;
            const struct lofi__place *found;
            st =
                find_tied(c, &c->tensors[i], plan->sources[0], &found, "the average lacks it, too");
            if (st != LOFI_OK) return st;
        }
    }
    return LOFI_OK;
}

/* Refuses expressions that select nothing: a slip would make a copy of the first input. */
static lofi_status refuse_selection(const struct lofi__plan *plan)
{
    const char *only = plan->options.only, *skip = plan->options.skip;
    lofi_set_error("%s: none of its tensors is selected: only is '%.200s', skip is '%.200s'",
                   plan->sources[0]->path, only != NULL ? only : "", skip != NULL ? skip : "");
    return LOFI_INVALID;
}

static lofi_status create_jobs(struct lofi__plan *plan, const struct lofi__selection *selection)
{
    const lofi_checkpoint *first = plan->sources[0];
    uint64_t selected = 0;

    if (first->count == 0) {
        lofi_set_error("%s: it has no tensors: there is nothing to average", first->path);
        return LOFI_INVALID;
    }
    plan->job_count = first->count;
    plan->jobs = lofi__mem_create(first->count, sizeof *plan->jobs);
    plan->places =
        lofi__mem_create(first->count, (size_t)plan->source_count * sizeof *plan->places);
    if (plan->jobs == NULL || plan->places == NULL) return LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < first->count; i++) {
        int is_selected;
        lofi_status st =
            lofi__selection_has(selection, first->tensors[i].entry->name, &is_selected);
        if (st == LOFI_OK) st = create_job(plan, i, is_selected);
        if (st != LOFI_OK) return st;
        selected += (uint64_t)is_selected;
    }
    lofi_status st = check_rest(plan, selection);
    if (st == LOFI_OK && plan->lora != NULL) st = lofi__lora_complete(plan);
    if (st != LOFI_OK || selected > 0 || !(selection->has_only || selection->has_skip)) return st;
    return refuse_selection(plan);
}

/* Checks all that can be told of the options by themselves. */
static lofi_status read_options(const lofi_average_files_options *given, struct lofi__plan *plan,
                                struct lofi__selection *selection)
{
    static const lofi_average_files_options init = LOFI_AVERAGE_FILES_OPTIONS_INIT;
    const lofi_average_files_options *o = &plan->options;
    enum lofi__lora_how how;
    uint64_t rank;

    *selection = (struct lofi__selection){0};
    *plan = (struct lofi__plan){.options = init};
    lofi_status st = lofi__options_read(&plan->options, sizeof plan->options, given,
                                        "LOFI_AVERAGE_FILES_OPTIONS_INIT");
    if (st == LOFI_OK) st = check_options(o);
    if (st == LOFI_OK) st = check_weights(o, &plan->weight_sum);
    if (st == LOFI_OK) st = lofi__lora_parse(o->lora, &how, &rank);
    if (st != LOFI_OK) return st;
    if (o->dtype != NULL) {
        plan->kind = lofi__kind_parse(o->dtype);
        if (plan->kind == NULL) return LOFI_INVALID;
    }
    return lofi__selection_create(o->only, o->skip, selection);
}

lofi_status lofi_average_files_check(const lofi_average_files_options *options)
{
    struct lofi__plan plan;
    struct lofi__selection selection;

    lofi_status st = read_options(options, &plan, &selection);
    lofi__selection_clear(&selection);
    return st;
}

lofi_status lofi__plan_create(const lofi_average_files_options *options,
                              const struct lofi__role *role, struct lofi__plan *plan)
{
    struct lofi__selection selection;

    lofi_status st = read_options(options, plan, &selection);
    plan->role = role;
    if (st == LOFI_OK) st = open_sources(plan);
    if (st == LOFI_OK) st = strip_prefixes(plan);
    if (st == LOFI_OK) st = lofi__quantized_check(plan, &selection);
    if (st == LOFI_OK) st = lofi__configs_check(plan);
    if (st == LOFI_OK) st = lofi__lora_begin(plan);
    if (st == LOFI_OK) st = lofi__mixing_create(plan);
    if (st == LOFI_OK) st = create_jobs(plan, &selection);
    lofi__selection_clear(&selection);
    if (st == LOFI_OK) st = lofi__plan_lay_out(plan);
    return st;
}

void lofi__plan_clear(struct lofi__plan *plan)
{
    for (int i = 0; i < plan->source_count; i++)
        lofi_checkpoint_close(plan->sources[i]);
    for (uint64_t i = 0; i < plan->output_count; i++) {
        lofi__mem_destroy(plan->outputs[i].name);
        lofi__mem_destroy(plan->outputs[i].path);
        lofi__mem_destroy(plan->outputs[i].header);
    }
    lofi__mixing_clear(&plan->mixing);
    lofi__lora_destroy(plan->lora);
    lofi__mem_destroy(plan->outputs);
    lofi__mem_destroy(plan->sources);
    lofi__mem_destroy(plan->jobs);
    lofi__mem_destroy(plan->places);
    lofi__mem_destroy(plan->index_name);
    lofi__mem_destroy(plan->index);
    *plan = (struct lofi__plan){0};
}
