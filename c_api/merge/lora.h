/* SPDX-License-Identifier: MIT */
/*
 * Adapters in an average: whether they fit together, and the average of their products.
 *
 * In a plain average the factors are tensors as others. With `lora` each pair of them is one
 * module, computed as a whole, whose two tensors of the output have shapes of their own.
 */
#ifndef LOFI_MERGE_LORA_H
#define LOFI_MERGE_LORA_H

#include "merge/adapter.h"
#include "merge/plan.h"
#include "merge/stream.h"

#define LOFI__LORA_DIMS 8

enum lofi__lora_how {
    LOFI__LORA_PLAIN, /* factor by factor */
    LOFI__LORA_EXACT, /* factors beside each other */
    LOFI__LORA_SVD,   /* the best of a rank */
};

struct lofi__lora_module {
    uint64_t a, b; /* numbers of the tensors in the first source: the `order` of their jobs */
    const struct lofi__place *const *places_a, *const *places_b; /* in each source */
    uint64_t rows, columns;
    uint64_t rank;  /* in the output */
    double scale;   /* with which PEFT multiplies the output's product */
    double *shares; /* what each source's product counts in it; 0: it is not read */
    uint64_t shape_a[LOFI__LORA_DIMS], shape_b[LOFI__LORA_DIMS]; /* in the output */
};

struct lofi__lora {
    enum lofi__lora_how how;
    uint64_t rank;                  /* that is asked for with LOFI__LORA_SVD */
    struct lofi__adapter *adapters; /* of the sources */
    int adapter_count;
    int is_shared; /* all sources have the same A in each module */
    struct lofi__lora_module *modules;
    double *shares; /* of all modules */
    uint64_t module_count;
};

/* Reads "exact" or "svd=8"; NULL is LOFI__LORA_PLAIN. LOFI_INVALID names another. */
lofi_status lofi__lora_parse(const char *text, enum lofi__lora_how *how, uint64_t *rank);

/* After the sources are opened: compares the adapters' configs, and warns of a plain mean. Sets
 * plan->lora where products are to be averaged. */
lofi_status lofi__lora_begin(struct lofi__plan *plan);
void lofi__lora_destroy(struct lofi__lora *lora);

/* 1 if the tensor's job is part of a module. LOFI_INVALID for one that can't be left out. */
lofi_status lofi__lora_takes(const struct lofi__plan *plan, const char *name, int is_selected,
                             int *is_taken);
/* After the jobs are listed, before they are laid out: pairs them, and gives them their sizes. */
lofi_status lofi__lora_complete(struct lofi__plan *plan);

/* The config of the output. `*text` is of lofi__mem. */
lofi_status lofi__lora_config(const struct lofi__plan *plan, char **text, size_t *bytes);

/* lora_run.c: writes all modules, or, to check, computes them again with the scalar kernels and
 * compares. `error` may be NULL. */
struct lofi__lora_error {
    double worst, whole;    /* lost of the products, relative in the Frobenius norm */
    const char *worst_name; /* of that module's A; NULL: nothing is lost */
};
lofi_status lofi__lora_run(const struct lofi__plan *plan,
                           const struct lofi__stream_options *options,
                           struct lofi__lora_error *error);

#endif /* LOFI_MERGE_LORA_H */
