/* SPDX-License-Identifier: MIT */
/*
 * A source whose factor is 0 is left out, and not multiplied: an input that is switched off by its
 * weight may be there because it is broken. With alpha 0 the average is the base alone.
 */
#include "merge/mix.h"
#include "core/mem.h"

static void add_source(struct lofi__mixing *m, int source, double weight)
{
    m->sources[m->count] = source;
    m->weights[m->count++] = weight;
    m->is_mixed[source] = 1;
}

lofi_status lofi__mixing_create(struct lofi__plan *plan)
{
    const lofi_average_files_options *o = &plan->options;
    struct lofi__mixing *m = &plan->mixing;

    m->sources = lofi__mem_create((size_t)plan->source_count, sizeof *m->sources);
    m->weights = lofi__mem_create((size_t)plan->source_count, sizeof *m->weights);
    m->is_mixed = lofi__mem_create((size_t)plan->source_count, 1);
    if (m->sources == NULL || m->weights == NULL || m->is_mixed == NULL) return LOFI_NO_MEMORY;
    if (o->base != NULL && o->alpha == 0) {
        add_source(m, plan->input_count, 1.0);
        m->weight_sum = 1.0;
        return LOFI_OK;
    }
    for (int i = 0; i < plan->input_count; i++) {
        const double weight = o->weights != NULL ? o->weights[i] : 1.0;
        if (weight != 0) add_source(m, i, weight);
    }
    m->weight_sum = plan->weight_sum;
    m->has_base = o->base != NULL && o->alpha * (o->raw_weights ? m->weight_sum : 1.0) != 1;
    if (m->has_base) m->is_mixed[plan->input_count] = 1;
    return LOFI_OK;
}

void lofi__mixing_clear(struct lofi__mixing *mixing)
{
    lofi__mem_destroy(mixing->sources);
    lofi__mem_destroy(mixing->weights);
    lofi__mem_destroy(mixing->is_mixed);
    *mixing = (struct lofi__mixing){0};
}

static const void *from(const struct lofi__worker *w, int source, size_t begin)
{
    return (const char *)w->data[source] + begin * lofi_dtype_bytes(w->dtypes[source]);
}

void lofi__mix_run(struct lofi__worker *w, lofi_dtype dtype, size_t begin, void *out, size_t count)
{
    const struct lofi__mixing *m = &w->plan->mixing;
    const int base = w->plan->input_count; /* it comes after the inputs */
    lofi_mix mix = LOFI_MIX_INIT;

    for (int i = 0; i < m->count; i++) {
        w->mixed[i] = from(w, m->sources[i], begin);
        w->mixed_dtypes[i] = w->dtypes[m->sources[i]];
    }
    mix.out_dtype = dtype;
    mix.in_dtypes = w->mixed_dtypes;
    mix.weights = m->weights;
    mix.inputs = m->count;
    mix.raw_weights = w->plan->options.raw_weights;
    if (m->has_base) {
        mix.base = from(w, base, begin);
        mix.base_dtype = w->dtypes[base];
        mix.alpha = w->plan->options.alpha;
    }
    lofi__mean_run(w->kernels, &mix, m->weight_sum, out, w->mixed, count);
}
