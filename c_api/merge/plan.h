/* SPDX-License-Identifier: MIT */
/* The plan of an average of files: the work on each tensor, and the place of its result. */
#ifndef LOFI_MERGE_PLAN_H
#define LOFI_MERGE_PLAN_H

#include "ckpt/checkpoint.h"

enum lofi__work {
    LOFI__WORK_MEAN,
    LOFI__WORK_SAME,   /* copied from the first, and has to be equal everywhere */
    LOFI__WORK_COPY,   /* copied from the first */
    LOFI__WORK_FACTOR, /* of a product: written with its module, see lora.h */
};

/* One tensor of the output. */
struct lofi__job {
    enum lofi__work work;
    const struct lofi__kind *kind;           /* in the output */
    const struct lofi__place *const *places; /* in each source; NULL behind the first: not needed */
    uint64_t bytes, begin;                   /* in the data of its output file */
    uint64_t file;                           /* number of its output file */
    uint64_t order;
    const uint64_t *shape; /* in the output; NULL: the first source's */
};

struct lofi__output {
    char *name;
    char *path; /* under the name that it is to get: for sentences */
    uint64_t first_job, job_count;
    uint64_t data_bytes;
    char *header; /* with its length before it */
    size_t header_bytes;
};

/* The sources whose numbers are in the average, in order: those with a factor of 0 are not, since
 * 0 * NaN is NaN. */
struct lofi__mixing {
    int *sources;
    double *weights;
    int count;               /* without the base */
    unsigned char *is_mixed; /* for each source */
    double weight_sum;
    int has_base; /* the last source is mixed in */
};
struct lofi__lora;

/* Besides its options, what an average knows that is one of several, of which one is chosen. */
struct lofi__role {
    int is_chosen;        /* 1: the metadata get the scores */
    const double *scores; /* of the inputs; NULL: they have none */
    double score;
};

struct lofi__plan {
    lofi_average_files_options options; /* what they point to is borrowed */
    lofi_checkpoint **sources;          /* the inputs, then the base */
    int source_count, input_count;
    double weight_sum;
    struct lofi__mixing mixing;
    const struct lofi__kind *kind; /* NULL: the first input's */
    struct lofi__job *jobs;        /* as they lie, file after file */
    uint64_t job_count;
    const struct lofi__place **places;
    struct lofi__output *outputs;
    uint64_t output_count;
    uint64_t statistics_count;     /* averaged running statistics of BatchNorm */
    const struct lofi__role *role; /* NULL: it is one by itself */
    struct lofi__lora *lora;       /* NULL: no products are averaged */
    int is_folder;
    char *index_name; /* NULL: no index */
    char *index;      /* its text */
    size_t index_bytes;
};

/* Checks the options, opens the sources, matches their tensors and lays the output out; writes
 * nothing. What the options point to is borrowed,
 * and so is the role (NULL: it has none), with which a prefix to strip may be one of inputs that are
 * not in this average. Clear the plan also after an error; one of zeros
 * may be cleared, too. */
lofi_status lofi__plan_create(const lofi_average_files_options *options,
                              const struct lofi__role *role, struct lofi__plan *plan);
void lofi__plan_clear(struct lofi__plan *plan);

/* lofi_average_files with a role, in average_files.c. */
lofi_status lofi__average_files(const lofi_average_files_options *options,
                                const struct lofi__role *role, lofi_average_report *report);

/* These complete the plan: the layout, in layout.c; headers and index, in describe.c. */
lofi_status lofi__plan_lay_out(struct lofi__plan *plan);
lofi_status lofi__plan_describe(struct lofi__plan *plan);

#endif /* LOFI_MERGE_PLAN_H */
