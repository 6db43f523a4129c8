/* SPDX-License-Identifier: MIT */
/* Checkpoints in files through lofi.h: reading, averages in several threads, and their ends. */
#define _GNU_SOURCE
#include "test.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT 5000000 /* several blocks */

static char folder[64];
static char paths[3][96];
static float *values[3];
static int64_t steps[3] = {7, 7, 7};

static void write_file(const char *path, const float *x, int64_t step)
{
    char header[512];
    FILE *file = fopen(path, "wb");
    ASSERT(file != NULL);
    const int length = snprintf(header, sizeof header,
                                "{\"x\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[8,%d]},"
                                "\"step\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]}}",
                                COUNT, 8 + 4 * COUNT);
    const uint64_t size = (uint64_t)length;
    ASSERT(fwrite(&size, 8, 1, file) == 1 && fwrite(header, size, 1, file) == 1);
    ASSERT(fwrite(&step, 8, 1, file) == 1 && fwrite(x, 4, COUNT, file) == COUNT);
    ASSERT(fclose(file) == 0);
}

static void make_files(void)
{
    uint64_t seed = 1;
    snprintf(folder, sizeof folder, P_tmpdir "/lofi-test-ckpt-%d", (int)getpid());
    ASSERT(mkdir(folder, 0700) == 0);
    for (int f = 0; f < 3; f++) {
        values[f] = malloc(COUNT * sizeof(float));
        ASSERT(values[f] != NULL);
        for (int i = 0; i < COUNT; i++)
            values[f][i] = (float)(int32_t)test_random(&seed) * 0x1p-31f;
        snprintf(paths[f], sizeof paths[f], "%s/%d.safetensors", folder, f);
        write_file(paths[f], values[f], steps[f]);
    }
}

static const char *out_path(void)
{
    static char path[96];
    snprintf(path, sizeof path, "%s/out.safetensors", folder);
    return path;
}

static lofi_average_files_options options_of(const char *const *inputs, int threads)
{
    lofi_average_files_options o = LOFI_AVERAGE_FILES_OPTIONS_INIT;
    o.inputs = inputs;
    o.input_count = 3;
    o.out = out_path();
    o.threads = threads;
    o.force = 1;
    return o;
}

static void check_out(const double *weights)
{
    const void *in[3] = {values[0], values[1], values[2]};
    float *expected = malloc(COUNT * sizeof(float)), *found = malloc(COUNT * sizeof(float));
    lofi_checkpoint *c = NULL;
    lofi_tensor t;

    ASSERT(expected != NULL && found != NULL);
    ASSERT(lofi_mean(LOFI_F32, expected, in, weights, 3, COUNT) == LOFI_OK);
    ASSERT(lofi_checkpoint_open(out_path(), &c) == LOFI_OK);
    ASSERT(lofi_checkpoint_find(c, "x") == 1 && lofi_checkpoint_find(c, "y") == -1);
    ASSERT(lofi_checkpoint_get(c, 1, &t) == LOFI_OK && t.bytes == 4 * COUNT);
    ASSERT(lofi_checkpoint_read(c, 1, 0, found, t.bytes) == LOFI_OK);
    EXPECT(memcmp(expected, found, t.bytes) == 0);
    EXPECT(lofi_checkpoint_read(c, 1, 1, found, t.bytes) == LOFI_INVALID);
    EXPECT(lofi_checkpoint_read(c, 2, 0, found, 0) == LOFI_INVALID);
    EXPECT(lofi_checkpoint_get(c, 2, &t) == LOFI_INVALID);
    lofi_checkpoint_close(c);
    free(expected);
    free(found);
}

static int stop_after_half(void *ctx, uint64_t done, uint64_t total)
{
    int *calls = ctx;
    ++*calls;
    return done > total / 2;
}

static void test_averages(const char *const *inputs)
{
    static const double weights[3] = {0.25, 3, 1};
    lofi_average_report report = {0};
    int calls = 0;

    for (int threads = 0; threads <= 5; threads++) {
        lofi_average_files_options o = options_of(inputs, threads);
        o.weights = threads % 2 ? weights : NULL;
        o.verify = threads == 2;
        ASSERT(lofi_average_files(&o, &report) == LOFI_OK);
        EXPECT(report.averaged_count == 1 && report.copied_count == 1);
        EXPECT(report.bytes_read == 3 * (8 + 4 * (uint64_t)COUNT));
        check_out(o.weights);
    }
    lofi_average_files_options o = options_of(inputs, 3);
    o.progress = stop_after_half;
    o.ctx = &calls;
    o.verify = 1;
    EXPECT(lofi_average_files(&o, NULL) == LOFI_STATE && calls > 0);
    check_out(weights); /* the output of before */
}

struct told {
    uint64_t count[3];
    int calls, is_averaged;
};

static void note_finding(void *ctx, const lofi_finding *finding)
{
    struct told *told = ctx;
    ASSERT(finding->input >= 0 && finding->input < 3);
    EXPECT(strcmp(finding->tensor, "x") == 0 && strcmp(finding->file, paths[finding->input]) == 0);
    told->count[finding->input] += finding->count;
    told->is_averaged = finding->is_averaged;
    told->calls++;
}

/* Threads count what they find in their blocks; it is told once for each input. */
static void test_findings(const char *const *inputs)
{
    static const int places[] = {0, 1, COUNT / 2, COUNT - 1};
    static const double without[3] = {1, 0, 1};
    float before[4];

    for (int i = 0; i < 4; i++) {
        before[i] = values[1][places[i]];
        values[1][places[i]] = i % 2 ? (float)(0.0 / 0.0) : (float)(1.0 / 0.0);
    }
    write_file(paths[1], values[1], steps[1]);
    lofi_log_set_level(LOFI_LOG_ERROR);
    for (int threads = 1; threads <= 4; threads++) {
        struct told told = {{0}, 0, 0};
        lofi_average_files_options o = options_of(inputs, threads);
        o.weights = threads == 4 ? without : NULL;
        o.verify = 1;
        o.finding = note_finding;
        o.ctx = &told;
        ASSERT(lofi_average_files(&o, NULL) == LOFI_OK);
        EXPECT(told.calls == 1 && told.count[1] == 4 && told.is_averaged == (threads < 4));
    }
    lofi_log_set_level(LOFI_LOG_WARN);
    for (int i = 0; i < 4; i++)
        values[1][places[i]] = before[i];
    write_file(paths[1], values[1], steps[1]);
}

/* Whoever fails, in whatever thread, its sentence comes back. */
static void test_sentences(const char *const *inputs)
{
    lofi_average_files_options o = options_of(inputs, 4);
    write_file(paths[2], values[2], 8);
    EXPECT(lofi_average_files(&o, NULL) == LOFI_INVALID);
    EXPECT_ERROR("'step'");
    o.integers_first = 1;
    EXPECT(lofi_average_files(&o, NULL) == LOFI_OK);
    o.out = paths[1];
    EXPECT(lofi_average_files(&o, NULL) == LOFI_INVALID);
    EXPECT_ERROR("replace an input");
    o.strip_count = 1;
    EXPECT(lofi_average_files_check(&o) == LOFI_INVALID);
    o.strip_count = -1;
    EXPECT(lofi_average_files_check(&o) == LOFI_INVALID);
    o.input_count = 0;
    EXPECT(lofi_average_files(&o, NULL) == LOFI_INVALID);
    o.size = 0;
    EXPECT(lofi_average_files(&o, NULL) == LOFI_INVALID);
    EXPECT(lofi_average_files(NULL, NULL) == LOFI_INVALID);
}

static int shorten(void *ctx, uint64_t done, uint64_t total)
{
    (void)done;
    (void)total;
    EXPECT(truncate(ctx, 1000) == 0);
    return 0;
}

static void test_shortened_meanwhile(const char *const *inputs)
{
    lofi_average_files_options o = options_of(inputs, 2);
    o.integers_first = 1;
    o.progress = shorten;
    o.ctx = paths[1];
    EXPECT(lofi_average_files(&o, NULL) == LOFI_CORRUPT);
    EXPECT_ERROR("1.safetensors");
    write_file(paths[1], values[1], steps[1]);
}

static void test_compare(void)
{
    lofi_checkpoint *a = NULL, *b = NULL;
    lofi_difference d;

    ASSERT(lofi_checkpoint_open(paths[0], &a) == LOFI_OK);
    ASSERT(lofi_checkpoint_open(paths[1], &b) == LOFI_OK);
    ASSERT(lofi_checkpoint_compare(a, 1, a, 1, &d) == LOFI_OK);
    EXPECT(d.equal && d.max == 0 && d.square == 0 && d.count == COUNT && d.dot == d.square_a);
    ASSERT(lofi_checkpoint_compare(a, 1, b, 1, &d) == LOFI_OK);
    EXPECT(!d.equal && d.max > 0 && d.square > 0);
    ASSERT(lofi_checkpoint_compare(a, 0, b, 0, &d) == LOFI_OK);
    EXPECT(d.equal && d.count == 0);
    EXPECT(lofi_checkpoint_compare(a, 0, b, 1, &d) == LOFI_INVALID);
    lofi_checkpoint_close(a);
    lofi_checkpoint_close(b);
    lofi_checkpoint_close(NULL);
    EXPECT(lofi_checkpoint_open("/nowhere", &a) == LOFI_SYSTEM);
    EXPECT(lofi_checkpoint_open("/dev/null", &a) == LOFI_INVALID);
    EXPECT(lofi_checkpoint_open("", &a) == LOFI_INVALID);
}

int main(void)
{
    const char *inputs[3] = {paths[0], paths[1], paths[2]};

    make_files();
    test_averages(inputs);
    test_findings(inputs);
    test_compare();
    test_sentences(inputs);
    test_shortened_meanwhile(inputs);
    for (int f = 0; f < 3; f++) {
        unlink(paths[f]);
        free(values[f]);
    }
    unlink(out_path());
    EXPECT(rmdir(folder) == 0); /* nothing hidden is left */
    return test_end();
}
