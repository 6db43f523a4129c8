/* SPDX-License-Identifier: MIT */
/*
 * The files around the weights. What is copied is decided by what is left out: weights in any
 * format (they would no longer belong to the average), hidden files, and what is large. A list of
 * names to copy would never be complete. A folder of such files is copied too, as those of
 * sentence-transformers. What can't be copied is said, and is no reason to give up an average.
 */
#define _GNU_SOURCE
#include "ckpt/path.h"
#include "ckpt/text.h"
#include "core/mem.h"
#include "merge/config.h"
#include "merge/lora.h"
#include "merge/output.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COPY_MOST ((off_t)64 << 20)

static const char *const weights[] = {
    ".safetensors", ".bin", ".pt",   ".pth",       ".ckpt", ".h5",
    ".msgpack",     ".ot",  ".onnx", ".onnx_data", ".gguf", ".distcp",
};

/* Weights are also their indexes: pytorch_model.bin.index.json and its like. */
static int is_weights(const char *name)
{
    if (lofi__path_ends_with(name, ".json") && strstr(name, ".index.") != NULL) return 1;
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (lofi__path_ends_with(name, weights[i])) return 1;
    return 0;
}

/* Files that tell of the first model alone: how it was trained, and how good it was. */
static int is_of_its_training(const char *name)
{
    static const char *const names[] = {"README.md", "trainer_state.json", "all_results.json"};

    return LOFI__HAS(names, name) || lofi__path_ends_with(name, "_results.json") ||
           lofi__path_ends_with(name, "_results.txt") ||
           strncmp(name, "events.out.tfevents", 19) == 0;
}

/* Tells whether the file belongs to the first checkpoint or the output, whatever it is called. */
static int is_of_plan(const struct lofi__plan *plan, const char *name)
{
    const lofi_checkpoint *first = plan->sources[0];

    if (plan->index_name != NULL && strcmp(plan->index_name, name) == 0) return 1;
    if (first->index_path != NULL && strcmp(lofi__path_last(first->index_path), name) == 0)
        return 1;
    for (uint64_t i = 0; i < first->file_count; i++)
        if (strcmp(first->files[i].name, name) == 0) return 1;
    for (uint64_t i = 0; i < plan->output_count; i++)
        if (strcmp(plan->outputs[i].name, name) == 0) return 1;
    return 0;
}

static lofi_status warn(const char *path, const char *why)
{
    lofi_log(LOFI_LOG_WARN, "%s: it is not copied: %s", path, why);
    return LOFI_OK;
}

/* Logs the last error as the reason for which a file is not copied. */
static lofi_status warn_last(void)
{
    lofi_log(LOFI_LOG_WARN, "%s (it is not copied)", lofi_last_error());
    return LOFI_OK;
}

static lofi_status copy_file(struct lofi__place_on_disk *disk, const char *path, const char *name)
{
    const struct lofi__plan *plan = disk->plan;
    char *text = NULL;
    size_t bytes = 0;

    lofi_status st = lofi__path_check_inside(plan->sources[0]->folder, path);
    if (st == LOFI_OK) st = lofi__file_read_all(path, (uint64_t)COPY_MOST, &text, &bytes);
    if (st != LOFI_OK && st != LOFI_NO_MEMORY) return warn_last();
    if (st == LOFI_OK && plan->kind != NULL && strcmp(name, "config.json") == 0)
        st = lofi__config_set_dtype(path, lofi_dtype_name(plan->kind->dtype), &text, &bytes);
    if (st == LOFI_OK && plan->lora != NULL && strcmp(name, LOFI__ADAPTER_CONFIG) == 0) {
        lofi__mem_destroy(text);
        text = NULL;
        st = lofi__lora_config(plan, &text, &bytes);
    }
    if (st == LOFI_OK) st = lofi__output_add(disk, name, text, bytes);
    lofi__mem_destroy(text);
    return st;
}

/* Hidden files are not copied. */
static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int list_names(const char *folder, struct dirent ***names)
{
    return scandir(folder, names, is_visible, alphasort);
}

static void free_names(struct dirent **names, int count)
{
    for (int i = 0; i < count; i++)
        free(names[i]);
    if (count >= 0) free(names);
}

/* Returns the reason for which the folder is not copied; NULL: it is copied. */
static const char *refusal(const char *folder, struct dirent *const *names, int count)
{
    off_t bytes = 0;

    for (int i = 0; i < count; i++) {
        struct stat found = {0};
        if (is_weights(names[i]->d_name)) return "it has weights: average them by themselves";
        char *path = lofi__path_join(folder, names[i]->d_name);
        if (path != NULL && stat(path, &found) == 0 && S_ISREG(found.st_mode))
            bytes += found.st_size;
        lofi__mem_destroy(path);
        if (S_ISDIR(found.st_mode)) return "it has folders in it";
        if (bytes > COPY_MOST) return "it has more than 64 MiB";
    }
    return NULL;
}

static lofi_status copy_folder(struct lofi__place_on_disk *disk, const char *path, const char *name)
{
    struct dirent **names = NULL;
    const int count = list_names(path, &names);
    const char *why = count < 0 ? strerror(errno) : refusal(path, names, count);
    lofi_status st = LOFI_OK;

    if (why != NULL)
        warn(path, why);
    else
        st = lofi__output_add_folder(disk, name);
    for (int i = 0; i < count && why == NULL && st == LOFI_OK; i++) {
        char *from = lofi__path_join(path, names[i]->d_name);
        char *to = lofi__path_join(name, names[i]->d_name);
        st = from != NULL && to != NULL ? copy_file(disk, from, to) : LOFI_NO_MEMORY;
        lofi__mem_destroy(from);
        lofi__mem_destroy(to);
    }
    free_names(names, count);
    if (st == LOFI_OK && why == NULL) st = lofi__output_sync_folder(disk, name);
    return st;
}

static int is_output(const struct lofi__place_on_disk *disk, const struct stat *found)
{
    struct stat out;
    return stat(disk->final, &out) == 0 && lofi__path_is_same(&out, found);
}

static lofi_status copy_other(struct lofi__place_on_disk *disk, const char *path, const char *name)
{
    struct stat found;

    if (is_of_plan(disk->plan, name)) return LOFI_OK;
    if (is_weights(name)) return warn(path, "it belongs to other weights, which are not averaged");
    if (is_of_its_training(name)) return warn(path, "it tells of this model's training alone");
    if (stat(path, &found) != 0) return warn(path, strerror(errno));
    if (!S_ISDIR(found.st_mode)) return copy_file(disk, path, name);
    if (is_output(disk, &found)) return LOFI_OK;
    if (lofi__path_check_inside(disk->plan->sources[0]->folder, path) == LOFI_OK)
        return copy_folder(disk, path, name);
    return warn_last();
}

lofi_status lofi__others_copy(struct lofi__place_on_disk *disk)
{
    const char *folder = disk->plan->sources[0]->folder;
    struct dirent **names = NULL;
    lofi_status st = LOFI_OK;

    if (folder == NULL) return LOFI_OK;
    const int count = list_names(folder, &names);
    if (count < 0) return lofi__path_failed(folder, "can't be read");
    for (int i = 0; i < count && st == LOFI_OK; i++) {
        char *path = lofi__path_join(folder, names[i]->d_name);
        st = path != NULL ? copy_other(disk, path, names[i]->d_name) : LOFI_NO_MEMORY;
        lofi__mem_destroy(path);
    }
    free_names(names, count);
    return st;
}
