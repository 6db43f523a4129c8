/* SPDX-License-Identifier: MIT */
/*
 * People name what they have: a pointer of Git LFS, the page of a server that refused, weights in
 * another format. Such a file is told by its first bytes, which are surer than its name; only kinds
 * without such bytes are told by that.
 */
#define _GNU_SOURCE
#include "ckpt/foreign.h"
#include "ckpt/path.h"
#include "core/mem.h"

#include <dirent.h>
#include <string.h>
#include <strings.h>

#define TEXT_LEAST 8
#define TEXT_SHOWN 60
#define TAR_OFFSET 257

#define UNPACK "it is compressed, or an archive: unpack it first"
#define CONVERT "; load it with the library that wrote it, and save the model as safetensors"
#define GGUF                                                                                       \
    "it is a GGUF file of llama.cpp: average the safetensors files that it was made from, and "    \
    "convert their average"
#define AGAIN ": look into it, and download the file again"

static const struct {
    size_t offset, bytes;
    const char *magic, *what;
} magics[] = {
    {0, 4, "GGUF", GGUF},
    {0, 8, "\x89HDF\r\n\x1a\n", "it is an HDF5 file, as Keras writes them" CONVERT},
    {0, 6, "\x93NUMPY", "it is an array of numpy" CONVERT},
    {0, 2, "\x1f\x8b", UNPACK},
    {0, 3, "BZh", UNPACK},
    {0, 6,
     "\xfd"
     "7zXZ\0",
     UNPACK},
    {0, 4, "\x28\xb5\x2f\xfd", UNPACK},
    {0, 4, "7z\xbc\xaf", UNPACK},
    {TAR_OFFSET, 5, "ustar", UNPACK},
};

static const struct {
    const char *end, *what;
} names[] = {
    {".gguf", GGUF},
    {".h5", "it is a file of Keras" CONVERT},
    {".hdf5", "it is a file of Keras" CONVERT},
    {".keras", "it is a file of Keras" CONVERT},
    {".msgpack", "it is a file of Flax" CONVERT},
    {".ckpt.index", "it is a checkpoint of TensorFlow" CONVERT},
    {".data-00000-of-00001", "it is a checkpoint of TensorFlow" CONVERT},
    {".ot", "it is a file of rust-bert" CONVERT},
    {".npz", "it is an archive of numpy" CONVERT},
    {".onnx",
     "it is a graph of ONNX: average the weights that it was made from, and export it anew"},
    {".tflite", "it is a model of TensorFlow Lite: average the weights that it was made from"},
};

/* The names under which programs keep what they have not got whole. */
static const char *const partial[] = {".incomplete", ".part",  ".partial",
                                      ".crdownload", ".aria2", ".download"};

static const char *name_of_end(const char *path)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (lofi__path_ends_with(path, names[i].end)) return names[i].what;
    return NULL;
}

static int is_partial(const char *path)
{
    for (size_t i = 0; i < sizeof partial / sizeof partial[0]; i++)
        if (lofi__path_ends_with(path, partial[i])) return 1;
    return 0;
}

static int begins(const unsigned char *head, size_t bytes, const char *word)
{
    return bytes >= strlen(word) && strncasecmp((const char *)head, word, strlen(word)) == 0;
}

/* Counts the printable characters of the first line. */
static size_t text_length(const unsigned char *head, size_t bytes)
{
    size_t length = 0;
    while (length < bytes && length < TEXT_SHOWN && head[length] >= ' ' && head[length] < 0x7f)
        length++;
    return length;
}

static size_t zero_count(const unsigned char *head, size_t bytes)
{
    size_t count = 0;
    while (count < bytes && head[count] == 0)
        count++;
    return count;
}

static lofi_status refuse(const char *path, const char *what)
{
    lofi_set_error("%s: %s", path, what);
    return LOFI_CORRUPT;
}

/* A zip, or a pickle, which begins as lengths of headers may: these end with four zeros. */
static int is_of_torch(const unsigned char *head, size_t bytes)
{
    static const unsigned char zeros[4];

    if (bytes < 8) return 0;
    if (memcmp(head, "PK\3\4", 4) == 0) return 1;
    return head[0] == 0x80 && head[1] <= 5 && memcmp(head + 4, zeros, sizeof zeros) != 0;
}

/* Text is what servers send, and programs that keep pointers to files. */
static lofi_status refuse_text(const char *path, const unsigned char *head, size_t bytes)
{
    const size_t spaces = strspn((const char *)head, " \t\r\n");
    const unsigned char *text = head + spaces;
    const size_t left = bytes - spaces, length = text_length(text, left);

    /* In the length of a header there is always one. */
    if (bytes < TEXT_LEAST || memchr(head, 0, TEXT_LEAST) != NULL) return LOFI_OK;
    if (begins(text, left, "version https://git-lfs"))
        return refuse(path,
                      "it is a pointer of Git LFS, not the file itself: 'git lfs pull' in its "
                      "repository fetches that");
    if (begins(text, left, "<!doctype") || begins(text, left, "<html") ||
        begins(text, left, "<?xml"))
        return refuse(path, "it is a web page, perhaps the error or the login of a server" AGAIN);
    const int is_line = length >= TEXT_LEAST && (length == left || length == TEXT_SHOWN ||
                                                 text[length] == '\n' || text[length] == '\r');
    if (!is_line && !(length > 0 && (text[0] == '{' || text[0] == '['))) return LOFI_OK;
    lofi_set_error("%s: it is text, perhaps the answer of a server ('%.*s')" AGAIN, path,
                   (int)length, (const char *)text);
    return LOFI_CORRUPT;
}

lofi_status lofi__foreign_refuse(const char *path, const unsigned char *head, size_t bytes)
{
    char text[LOFI__FOREIGN_BYTES + 1];

    for (size_t i = 0; i < sizeof magics / sizeof magics[0]; i++)
        if (bytes >= magics[i].offset + magics[i].bytes &&
            memcmp(head + magics[i].offset, magics[i].magic, magics[i].bytes) == 0)
            return refuse(path, magics[i].what);
    if (name_of_end(path) != NULL) return refuse(path, name_of_end(path));
    if (is_partial(path)) return refuse(path, "it is an unfinished download: let it end");
    if (bytes >= 64 && zero_count(head, bytes) == bytes)
        return refuse(path, "it begins with zeros: an unfinished download, or copy, of a file");
    if (is_of_torch(head, bytes))
        return refuse(path, "it looks like a file of torch.save, not of safetensors: "
                            "lofi.average_checkpoints in Python averages these, by names that do "
                            "not end in .safetensors");
    memcpy(text, head, bytes);
    text[bytes] = '\0';
    return refuse_text(path, (const unsigned char *)text, bytes);
}

/* The kinds of files that a folder may have; the first one that is there is told. */
enum { PARTIAL, SHARDED_BIN, BIN, DISTRIBUTED, OTHER, INNER, KIND_COUNT };

struct found {
    char name[KIND_COUNT][256];
};

static int is_bin(const char *name)
{
    static const char *const ends[] = {".bin", ".pt", ".pth", ".ckpt"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (lofi__path_ends_with(name, ends[i])) return strcmp(name, "training_args.bin") != 0;
    return 0;
}

static int holds_safetensors(const char *folder, const char *name)
{
    char *path = lofi__path_join(folder, name);
    DIR *list = path != NULL ? opendir(path) : NULL;
    const struct dirent *entry;
    int holds = 0;

    while (list != NULL && !holds && (entry = readdir(list)) != NULL)
        holds = entry->d_name[0] != '.' && lofi__path_ends_with(entry->d_name, LOFI__FILE_END);
    if (list != NULL) closedir(list);
    lofi__mem_destroy(path);
    return holds;
}

static int kind_of(const char *folder, const char *name)
{
    if (strcmp(name, ".metadata") == 0 || lofi__path_ends_with(name, ".distcp")) return DISTRIBUTED;
    if (name[0] == '.') return KIND_COUNT;
    if (is_partial(name)) return PARTIAL;
    if (lofi__path_ends_with(name, ".bin.index.json")) return SHARDED_BIN;
    if (is_bin(name)) return BIN;
    if (name_of_end(name) != NULL) return OTHER;
    return holds_safetensors(folder, name) ? INNER : KIND_COUNT;
}

/* Keeps the name of each kind that is the first by the alphabet: readdir has no order. */
static lofi_status look_into(const char *path, struct found *found)
{
    const struct dirent *entry;
    DIR *folder = opendir(path);

    if (folder == NULL) return lofi__path_failed(path, "can't be opened");
    while ((entry = readdir(folder)) != NULL) {
        const int kind = kind_of(path, entry->d_name);
        if (kind == KIND_COUNT || strlen(entry->d_name) >= sizeof found->name[kind]) continue;
        char *name = found->name[kind];
        if (name[0] == '\0' || strcmp(entry->d_name, name) < 0) strcpy(name, entry->d_name);
    }
    closedir(folder);
    return LOFI_OK;
}

lofi_status lofi__foreign_refuse_folder(const char *path)
{
    static const char *const what[] = {
        [PARTIAL] = "is an unfinished download: let it end",
        [SHARDED_BIN] = "is of torch.save: load the model with transformers, and "
                        "save_pretrained() writes safetensors",
        [BIN] = "is of torch.save: name such files to lofi.average_checkpoints in Python, or save "
                "the model as safetensors",
        [DISTRIBUTED] = "is of torch.distributed.checkpoint: lofi.average_checkpoints in Python "
                        "averages such folders",
        [INNER] = "is a folder that has some: name that",
    };
    struct found found = {{{0}}};

    lofi_status st = look_into(path, &found);
    if (st != LOFI_OK) return st;
    int kind = 0;
    while (kind < KIND_COUNT && found.name[kind][0] == '\0')
        kind++;
    if (kind == KIND_COUNT)
        lofi_set_error("%s: the folder has no safetensors file", path);
    else
        lofi_set_error("%s: the folder has no safetensors file; '%.200s' there: %s%s", path,
                       found.name[kind], kind == OTHER ? "" : "it ",
                       kind == OTHER ? name_of_end(found.name[kind]) : what[kind]);
    return LOFI_INVALID;
}
