/* SPDX-License-Identifier: MIT */
/*
 * The modules of an average of products: which tensors belong together, what each source counts,
 * and the ranks and scales of the output.
 *
 * PEFT multiplies B A by one scale. It is chosen such that as few numbers as possible are
 * multiplied when they are written: with equal weights and scales the factors of all sources are
 * taken over as they are, since 1/K of a scale alpha/r is that of the rank K r and the same alpha.
 */
#include "ckpt/path.h"
#include "core/mem.h"
#include "merge/factor_name.h"
#include "merge/lora.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static lofi_status refuse_shape(const struct lofi__place *a, const struct lofi__place *b)
{
    lofi_set_error("%s: the shapes of '%.200s' and '%.200s' are not those of two factors, [r, ...] "
                   "and [n, r], as floats",
                   a->file->path, a->entry->name, b->entry->name);
    return LOFI_INVALID;
}

static int is_real(const struct lofi__entry *e)
{
    return e->kind->class == LOFI__KIND_FLOAT && e->kind->lanes == 1 && e->dims >= 2 &&
           e->dims <= LOFI__LORA_DIMS && e->count > 0;
}

/* B of a convolution has sizes of 1 behind its rank. */
static lofi_status check_pair(const struct lofi__place *a, const struct lofi__place *b)
{
    const struct lofi__entry *x = a->entry, *y = b->entry;
    const int fit = is_real(x) && is_real(y) && y->shape[1] == x->shape[0] &&
                    y->count / y->shape[0] == y->shape[1];
    return fit ? LOFI_OK : refuse_shape(a, b);
}

/* All but the rank, which is the first size of A and the second of B. */
static int has_same_sizes(const struct lofi__entry *x, const struct lofi__entry *y, int rank_at)
{
    if (x->dims != y->dims) return 0;
    for (int i = 0; i < x->dims; i++)
        if (i != rank_at && x->shape[i] != y->shape[i]) return 0;
    return 1;
}

static lofi_status check_sizes(const struct lofi__place *first, const struct lofi__place *other,
                               int rank_at)
{
    if (has_same_sizes(first->entry, other->entry, rank_at)) return LOFI_OK;
    lofi_set_error("the tensor '%.200s' is of another size in %s than in %s, beside its rank",
                   first->entry->name, other->file->path, first->file->path);
    return LOFI_INVALID;
}

static lofi_status check_module(const struct lofi__plan *plan, const struct lofi__lora_module *m)
{
    for (int s = 0; s < plan->source_count; s++) {
        lofi_status st = check_pair(m->places_a[s], m->places_b[s]);
        if (st == LOFI_OK) st = check_sizes(m->places_a[0], m->places_a[s], 0);
        if (st == LOFI_OK) st = check_sizes(m->places_b[0], m->places_b[s], 1);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

/* What source `s` counts in the average of products. The base comes last. */
static double share_of(const struct lofi__plan *plan, int s)
{
    const lofi_average_files_options *o = &plan->options;

    const double whole = o->raw_weights ? 1 : plan->weight_sum; /* coefficients stay as they are */

    if (s == plan->input_count) return 1 - o->alpha * plan->weight_sum / whole;
    const double share = (o->weights != NULL ? o->weights[s] : 1) / whole;
    return o->base != NULL ? o->alpha * share : share;
}

static uint64_t rank_of(const struct lofi__lora_module *m, int s)
{
    return m->places_a[s]->entry->shape[0];
}

static int is_power_of_two(double x)
{
    int exponent;
    return fabs(frexp(x, &exponent)) == 0.5;
}

/* Ranks whose numbers are rounded if the output's scale is this one. */
static uint64_t count_rounded(const struct lofi__plan *plan, const struct lofi__lora_module *m,
                              double scale)
{
    uint64_t count = 0;
    for (int s = 0; s < plan->source_count; s++)
        if (m->shares[s] != 0 && !is_power_of_two(m->shares[s] / scale)) count += rank_of(m, s);
    return count;
}

/* The scale that leaves most numbers as they are; of those the largest, so that none overflow. */
static double best_scale(const struct lofi__plan *plan, const struct lofi__lora_module *m)
{
    uint64_t fewest = UINT64_MAX;
    double best = 1;

    for (int s = 0; s < plan->source_count; s++) {
        const double scale = fabs(m->shares[s]);
        if (!(scale > 0)) continue;
        const uint64_t count = count_rounded(plan, m, scale);
        if (count > fewest || (count == fewest && scale <= best)) continue;
        fewest = count;
        best = scale;
    }
    return best;
}

static double sum_of(const double *shares, int count)
{
    double sum = 0;
    for (int s = 0; s < count; s++)
        sum += shares[s];
    return sum;
}

/* Chooses the output's rank and scale. */
static lofi_status size_module(const struct lofi__plan *plan, struct lofi__lora_module *m)
{
    const struct lofi__lora *lora = plan->lora;
    uint64_t sum = 0;

    for (int s = 0; s < plan->source_count; s++)
        if (m->shares[s] != 0 && __builtin_add_overflow(sum, rank_of(m, s), &sum))
            return refuse_shape(m->places_a[s], m->places_b[s]);
    m->rank = sum;
    m->scale = 1;
    if (lora->how == LOFI__LORA_SVD) {
        if (lora->rank < sum) m->rank = lora->rank;
    } else if (lora->is_shared) {
        const double scale = sum_of(m->shares, plan->source_count);
        m->rank = rank_of(m, 0);
        if (scale != 0 && scale - scale == 0) m->scale = scale;
    } else {
        m->scale = best_scale(plan, m);
    }
    for (int s = 0; s < plan->source_count; s++)
        m->shares[s] /= m->scale;
    return LOFI_OK;
}

static lofi_status scale_module(const struct lofi__plan *plan, struct lofi__lora_module *m)
{
    const char *name = m->places_a[0]->entry->name;
    size_t word = 0;

    lofi__part_of(name, &word);
    for (int s = 0; s < plan->source_count; s++) {
        lofi_status st = lofi__adapter_scale(&plan->lora->adapters[s], name,
                                             word > 0 ? word - 1 : 0, rank_of(m, s), &m->shares[s]);
        if (st != LOFI_OK) return st;
        m->shares[s] *= share_of(plan, s);
    }
    return size_module(plan, m);
}

/* The number of the B that belongs to this A. */
static lofi_status find_partner(const lofi_checkpoint *first, const char *name, uint64_t *number)
{
    char *partner = lofi__part_partner(name);
    if (partner == NULL) return LOFI_NO_MEMORY;
    const int64_t found = lofi_checkpoint_find(first, partner);

    if (found < 0)
        lofi_set_error("%s: it has the tensor '%.200s' and no '%.200s'", first->path, name,
                       partner);
    else
        *number = (uint64_t)found;
    lofi__mem_destroy(partner);
    return found < 0 ? LOFI_INVALID : LOFI_OK;
}

static lofi_status create_module(struct lofi__plan *plan, uint64_t number)
{
    struct lofi__lora *lora = plan->lora;
    struct lofi__lora_module *m = &lora->modules[lora->module_count];
    const struct lofi__place *first = plan->jobs[number].places[0];
    uint64_t partner = 0;

    lofi_status st = find_partner(plan->sources[0], first->entry->name, &partner);
    if (st != LOFI_OK) return st;
    *m = (struct lofi__lora_module){
        .a = number,
        .b = partner,
        .places_a = plan->jobs[number].places,
        .places_b = plan->jobs[partner].places,
        .shares = lora->shares + lora->module_count * (uint64_t)plan->source_count,
    };
    st = check_module(plan, m);
    if (st != LOFI_OK) return st;
    m->rows = m->places_b[0]->entry->shape[0];
    m->columns = first->entry->count / first->entry->shape[0];
    lora->module_count++;
    return scale_module(plan, m);
}

/* A module that has fewer ranks than others gets zeros: one rank for all needs no patterns. */
static void even_ranks(struct lofi__lora *lora)
{
    uint64_t most = 0;

    if (lora->how != LOFI__LORA_SVD) return;
    for (uint64_t i = 0; i < lora->module_count; i++)
        if (lora->modules[i].rank > most) most = lora->modules[i].rank;
    for (uint64_t i = 0; i < lora->module_count; i++)
        lora->modules[i].rank = most;
}

/* Gives a job the shape of its tensor in the first source with another rank. */
static lofi_status shape_job(struct lofi__job *job, uint64_t *shape, int rank_at, uint64_t rank)
{
    const struct lofi__entry *e = job->places[0]->entry;
    uint64_t count = e->count / e->shape[rank_at];

    for (int i = 0; i < e->dims; i++)
        shape[i] = i == rank_at ? rank : e->shape[i];
    job->shape = shape;
    if (!__builtin_mul_overflow(count, rank, &count) &&
        !__builtin_mul_overflow(count, job->kind->bits / 8, &job->bytes))
        return LOFI_OK;
    lofi_set_error("%s: the tensor '%.200s' would be too large with the rank %" PRIu64,
                   job->places[0]->file->path, e->name, rank);
    return LOFI_INVALID;
}

static lofi_status shape_jobs(struct lofi__plan *plan)
{
    even_ranks(plan->lora);
    for (uint64_t i = 0; i < plan->lora->module_count; i++) {
        struct lofi__lora_module *m = &plan->lora->modules[i];
        lofi_status st = shape_job(&plan->jobs[m->a], m->shape_a, 0, m->rank);
        if (st == LOFI_OK) st = shape_job(&plan->jobs[m->b], m->shape_b, 1, m->rank);
        if (st != LOFI_OK) return st;
    }
    return LOFI_OK;
}

/* Each A has its B; if there are as many of both, each B has its A. */
static lofi_status check_all(const struct lofi__plan *plan, uint64_t b_count)
{
    if (b_count == plan->lora->module_count) return LOFI_OK;
    lofi_set_error("%s: it has %" PRIu64 " factors A and %" PRIu64 " factors B",
                   plan->sources[0]->path, plan->lora->module_count, b_count);
    return LOFI_INVALID;
}

lofi_status lofi__lora_complete(struct lofi__plan *plan)
{
    struct lofi__lora *lora = plan->lora;
    const size_t sources = (size_t)plan->source_count;
    uint64_t b_count = 0;
    size_t word;

    lora->modules = lofi__mem_create(plan->job_count, sizeof *lora->modules);
    lora->shares = lofi__mem_create(plan->job_count, sources * sizeof *lora->shares);
    if (lora->modules == NULL || lora->shares == NULL) return LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < plan->job_count; i++) {
        const char *name = plan->jobs[i].places[0]->entry->name;
        const enum lofi__part part = lofi__part_of(name, &word);
        b_count += part == LOFI__PART_B;
        lofi_status st = part == LOFI__PART_A ? create_module(plan, i) : LOFI_OK;
        if (st != LOFI_OK) return st;
    }
    lofi_status st = check_all(plan, b_count);
    return st == LOFI_OK ? shape_jobs(plan) : st;
}

lofi_status lofi__lora_config(const struct lofi__plan *plan, char **text, size_t *bytes)
{
    const struct lofi__lora *lora = plan->lora;
    struct lofi__adapter_module *list = lofi__mem_create(lora->module_count, sizeof *list);

    if (list == NULL) return LOFI_NO_MEMORY;
    for (uint64_t i = 0; i < lora->module_count; i++) {
        const struct lofi__lora_module *m = &lora->modules[i];
        const char *name = m->places_a[0]->entry->name;
        size_t word = 0;
        lofi__part_of(name, &word);
        list[i] = (struct lofi__adapter_module){name, word > 0 ? word - 1 : 0, m->rank, m->scale};
    }
    lofi_status st = lofi__adapter_write(&lora->adapters[0], list, lora->module_count, text, bytes);
    lofi__mem_destroy(list);
    return st;
}
