/* SPDX-License-Identifier: MIT */
/* Checkpoints in files: reading them, and writing their average. */
#ifndef LOFI_FILES_H
#define LOFI_FILES_H

#include "lofi/base.h"

LOFI__DECLARATIONS_BEGIN

/*
 * A checkpoint in safetensors files, open for reading: a file; an index
 * (model.safetensors.index.json, or of a variant model.safetensors.index.fp16.json) with its
 * shards; or a folder with one of these, as transformers finds them. Immutable; any number of
 * threads may use it at once.
 *
 * Files of strangers are expected: all that safetensors refuses is refused (LOFI_CORRUPT), and an
 * index that names anything but plain files beside it, or links that leave the folder (except from
 * a snapshot of the Hugging Face cache to its blobs). A file that is shortened while it is open
 * gives LOFI_CORRUPT when it is read. lofi_last_error() names the file and the tensor.
 */
typedef struct lofi_checkpoint lofi_checkpoint;

lofi_status lofi_checkpoint_open(const char *path, lofi_checkpoint **out);
void lofi_checkpoint_close(lofi_checkpoint *checkpoint); /* NULL is a no-op */

/* One tensor. The pointers are the checkpoint's, valid until it is closed. */
typedef struct lofi_tensor {
    const char *name;
    const char *dtype;     /* as the format spells it: "BF16", "F8_E4M3", "I64", "BOOL" ... */
    const char *file;      /* path of the file that has it */
    const uint64_t *shape; /* `dims` numbers */
    int dims;
    uint64_t count; /* elements */
    uint64_t bytes;
} lofi_tensor;

/* Tensors have the indices 0 ... count - 1: file after file by name, in each as its data lies. */
uint64_t lofi_checkpoint_count(const lofi_checkpoint *checkpoint);
lofi_status lofi_checkpoint_get(const lofi_checkpoint *checkpoint, uint64_t index,
                                lofi_tensor *tensor);
/* The index of the tensor of this name, or -1. */
int64_t lofi_checkpoint_find(const lofi_checkpoint *checkpoint, const char *name);
/* Copies `bytes` bytes of the tensor's data, from byte `offset` on. Blocks for the disk. */
lofi_status lofi_checkpoint_read(const lofi_checkpoint *checkpoint, uint64_t index, uint64_t offset,
                                 void *out, size_t bytes);

uint64_t lofi_checkpoint_file_count(const lofi_checkpoint *checkpoint);
/* Entry `index` of the __metadata__ of all files, one after the other: returns the key and writes
 * the value; NULL past the last one. */
const char *lofi_checkpoint_metadata(const lofi_checkpoint *checkpoint, uint64_t index,
                                     const char **value);

/*
 * Takes prefixes off the names of tensors: of each checkpoint whose names all begin with one, as
 * "module." of DistributedDataParallel, and are longer; each prefix once. Before other threads use
 * the checkpoints: names that were got from them are void. LOFI_INVALID names a prefix that none
 * has.
 */
lofi_status lofi_checkpoints_strip(lofi_checkpoint *const *checkpoints, int count,
                                   const char *const *prefixes, int prefix_count);
/* Writes which prefixes, taken off, would give two checkpoints the same names (half of them at
 * least), as a clause that begins with a semicolon; an empty text if there are none. */
void lofi_checkpoints_hint(const lofi_checkpoint *a, const lofi_checkpoint *b, char *text,
                           size_t bytes);

/* How two tensors of the same shape differ, in double. Where there is nothing to compare (no
 * element, or no number) all is 0 and `equal` says whether the bytes are. */
typedef struct lofi_difference {
    int equal;      /* 1: the same values (a NaN equals a NaN) */
    uint64_t count; /* numbers compared; 0 for dtypes that are not averaged */
    double max;     /* largest |a - b|; NaN if one of them is. Two equal numbers: 0, also if they
                       are not finite; then they do not count for the sums of products */
    double square;  /* sum of (a - b)^2 */
    double dot;     /* sum of a * b */
    double square_a, square_b;
} lofi_difference;

/* Compares tensor `index_a` of `a` with tensor `index_b` of `b`. LOFI_INVALID if shapes differ, or
 * dtypes of which not both are floats. Blocks for the disk. */
lofi_status lofi_checkpoint_compare(const lofi_checkpoint *a, uint64_t index_a,
                                    const lofi_checkpoint *b, uint64_t index_b,
                                    lofi_difference *difference);

/*
 * Selects the tensors that an average takes: is_selected[i] becomes 1 if `only` (NULL: anything) is
 * found in names[i] and `skip` (NULL: nothing) is not, else 0. Both are POSIX extended regular
 * expressions; escapes of other dialects ("\d") are refused. LOFI_INVALID names a wrong one.
 */
lofi_status lofi_names_select(const char *only, const char *skip, const char *const *names,
                              size_t count, unsigned char *is_selected);

/*
 * Looks for quantised weights among tensors, by their names and dtypes (as the format spells them):
 * codes, whose scales are another tensor. Returns the index of the first codes, and writes that of
 * their scales; -1 if there are none, or -2 without memory.
 */
int64_t lofi_names_find_quantised(const char *const *names, const char *const *dtypes, size_t count,
                                  size_t *scales);

/* Called now and then on the thread that waits for an average. Anything but 0 ends it, with
 * LOFI_STATE and nothing left behind. */
typedef int (*lofi_progress_fn)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/* Numbers that an average should not have: an input's that are not finite, or results that do not
 * fit. What is the same infinity in all that is averaged (a mask) is none. */
typedef struct lofi_finding {
    const char *tensor;
    int input; /* index of the input that has them, `input_count` for the base. -1: numbers of
                         the output that are beyond the range of its dtype (or of the sum), while all
                         that they are the average of are finite */
    const char *file; /* that has the tensor */
    uint64_t count;   /* numbers: halves of complex ones count by themselves */
    int is_averaged; /* 0: the input has weight 0, or alpha leaves it out: they are in no average */
} lofi_finding;

/* Called on the calling thread, with pointers that are valid for the call. */
typedef void (*lofi_finding_fn)(void *ctx, const lofi_finding *finding);

typedef struct lofi_average_files_options {
    size_t size;
    const char *const *inputs; /* paths as for lofi_checkpoint_open, all borrowed for the call */
    int input_count;           /* >= 1 */
    const char *out;           /* a file if the first input is one, else a folder */
    const double *weights;     /* as in lofi_mean: one for each input, or NULL */
    const char *base;          /* NULL, or a checkpoint to interpolate from */
    double alpha;              /* read with a base: how far to go from it to the average */
    const char *only;          /* as for lofi_names_select: what is not selected comes from the */
    const char *skip;          /* first input */
    const char *dtype;    /* NULL: each tensor keeps the first's; else "bfloat16", "BF16" ... */
    int integers_first;   /* 1: integers and bools come from the first input. 0: they have to
                                  be equal in all */
    uint64_t shard_bytes; /* 0: files as in the first input. Else a folder, with shards of at
                                  most so many bytes of data, but a tensor at least */
    int threads;          /* 0: one for each CPU that the process may use */
    int force;            /* 1: an output that exists is replaced */
    int fsync;            /* 1: the output is on the disk when the call returns */
    int verify;           /* 1: the output is read again, and compared with the average taken
                                  once more, by plain C, before it gets its name */
    int sha256;           /* 1: the metadata get the SHA-256 of each input file */
    lofi_progress_fn progress; /* may be NULL */
    void *ctx;                 /* of both functions */
    lofi_finding_fn finding;   /* may be NULL: gets each finding once the output has its name; the
                                  log warns of them, too */
    const char *const *strip_prefixes; /* taken off the names of each source of which all begin
                                          with it ("module."), each once; one that none has is
                                          LOFI_INVALID. All else goes by the names that are left */
    int strip_count;
    int raw_weights; /* 1: weights are coefficients: any finite numbers, not divided by their sum */
    int force_config; /* 1: configs and tokenizers that differ are no error */
    const char *lora; /* NULL: adapters are averaged factor by factor; "exact" or "svd=R":
                         their products are */
} lofi_average_files_options;
#define LOFI_AVERAGE_FILES_OPTIONS_INIT                                                            \
    {                                                                                              \
        sizeof(lofi_average_files_options), NULL, 0, NULL, NULL, NULL, 1.0, NULL, NULL, NULL, 0,   \
            0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0, NULL                                \
    }

typedef struct lofi_average_report {
    uint64_t averaged_count, copied_count; /* tensors */
    uint64_t bytes_read;                   /* of tensors, without `verify` and `sha256` */
    uint64_t bytes_written;
    uint64_t file_count; /* of safetensors written */
    int threads;
    uint64_t statistics_count; /* running statistics of BatchNorm that were averaged */
    uint64_t product_count;    /* with `lora`: the products averaged, and what of them is lost by */
    double product_error; /* reduction and rounding, relative, in the Frobenius norm: of all, */
    double worst_error;   /* and of the worst, whose factor A has the name (its beginning) */
    char worst_name[256]; /* "": nothing is lost */
} lofi_average_report;

/*
 * Writes the average of checkpoints. For each selected tensor, element by element, in doubles,
 * each operation rounded by itself, in the order given:
 *
 *     m = ((w0*x0 + w1*x1) + w2*x2 ...) / (w0 + w1 + ...)          lofi_mean
 *     m = (1 - alpha)*base + alpha*m                               with a base
 *
 * or, with raw_weights (task arithmetic), where W = w0 + w1 + ... may be anything,
 *
 *     m = (w0*x0 + w1*x1) + w2*x2 ...
 *     m = (1 - alpha*W)*base + alpha*m                             with a base
 *
 * (the latter is base + alpha*(w0*(x0 - base) + w1*(x1 - base) ...), a sum of task vectors)
 *
 * and m rounded once, to nearest even, to the dtype of the output: that of the first input, or
 * `dtype`. Inputs may have the tensor in other float dtypes. The bits do not depend on threads or
 * the CPU, and are those of lofi_finalize_average.
 *
 *   Zeros      What has the factor 0 (a weight, alpha, 1 - alpha) is left out of the sum, so that
 *              its infinities and NaN are not in the average. It has to fit all the same.
 *   Finite     An average of numbers that are not finite is written as the formula has it, and so
 *              is one that its dtype can't hold (infinity; in F8_E4M3 the largest number). Each is
 *              a lofi_finding. Of tensors that are not averaged nothing is found.
 *   Dtypes     F64, F32, F16, BF16, F8_E4M3, F8_E5M2 are averaged; C64 as two F32, without `dtype`.
 *              Integers and BOOL have to be equal in all inputs (and the base): `integers_first`.
 *              All others (FNUZ, E8M0, F6, F4) have to be equal.
 *   Names      The first input and every other (and the base) have the same selected tensors, with
 *              the same shapes, in whatever files. What is not selected comes from the first, as it
 *              is, and may be missing elsewhere. If `only` or `skip` is given, it has to leave one.
 *   Quantised  Selected codes that have scales, and a config.json with a quantization_config, are
 *              refused: the mean of codes is not the code of a mean.
 *   Configs    Where sources are folders, their config.json and the files of their tokenizers must
 *              not differ in what changes the output of a model (`force_config`).
 *   Tied       A tensor that a checkpoint has and another lacks is no error if it is equal, bit for
 *              bit, to another tensor of its checkpoint that both have, and no constant: the other
 *              model is tied, and has one for both. It is in the average if the first input has it.
 *              The log tells it.
 *   Files      Tensors stay in the order and files of the first input; if their sizes change, the
 *              largest elements come first, so that data stay aligned. Shards of another size have
 *              the first's names with other numbers ("model" if it is a file by itself). A folder
 *              also gets a copy of the first folder's other files (config, tokenizer: not hidden,
 *              no weights in other formats, up to 64 MiB each), and of folders with nothing but
 *              such files, but not what tells of the first model's training alone (README.md,
 *              trainer_state.json); the log names what is not copied. Where a config.json there names the
 *              dtype of the weights, it gets `dtype`.
 *   Metadata   The first's entries, "format": "pt" if it has none, and lofi.version, lofi.inputs,
 *              lofi.weights, lofi.base, lofi.alpha, lofi.sha256 as text in JSON; lofi.lora as it
 *              is; lofi.raw_weights is "true" where they are; lofi.batchnorm says that running
 *              statistics were averaged.
 *   BatchNorm  Tensors named running_mean or running_var that differ between the inputs are averaged
 *              like others, and are then not what the averaged model needs: the log says that they
 *              have to be computed again on data.
 *   Adapters   If the first has factors of LoRA, or is called adapter_model, the adapter_config.json
 *              beside each input are compared: LOFI_INVALID names a key for which they do not fit.
 *              Without `lora` factors are averaged as other tensors, and the log warns of that. With
 *              it their products are: the first is a folder, and adapters have LoRA alone; the sum of
 *              w s B A, s the scale of the config, is written as one product, of the sum of all ranks
 *              ("exact"), or as the best approximation of rank R ("svd=R"), and the config of the
 *              first with the ranks and scales of that. Modules are taken up whole: memory of the
 *              largest one's factors in double, some five times, for each thread, up to 1 GiB.
 *   Output     Appears under its name when it is complete: it is written beside it, under a name
 *              that begins with ".lofi-", and renamed. After an error there is nothing, and what
 *              was there before is untouched; a process that is killed leaves the hidden one. With
 *              `force` a folder is exchanged with an older one in one step. Then the older one's
 *              safetensors files and index, and what the new one has too, are removed, and the rest
 *              is moved to the new one; if that fails, or the process is killed there, the rest is
 *              in the hidden folder, which the error names. An input is never replaced.
 *   Memory     A few MiB for each thread, however large the files; for the names about 200 bytes
 *              for each tensor of each input, and meanwhile five times the longest header.
 *
 * LOFI_INVALID for options, and for checkpoints that do not fit together (names the tensor and both
 * files); LOFI_CORRUPT for damaged files, and for one that changes meanwhile; LOFI_SYSTEM for the
 * disk. `report` may be NULL.
 */
lofi_status lofi_average_files(const lofi_average_files_options *options,
                               lofi_average_report *report);

/* LOFI_INVALID if the options by themselves are wrong, whatever is in the files; opens none. */
lofi_status lofi_average_files_check(const lofi_average_files_options *options);

LOFI__DECLARATIONS_END

#endif /* LOFI_FILES_H */
