/* SPDX-License-Identifier: MIT */
/*
 * Out of memory: the n-th allocation fails, for every n. This program brings its own pair of
 * system functions, and counts what is still held.
 */
#define _GNU_SOURCE
#include "core/mem.h"
#include "world.h"

#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

static int until_failure; /* allocations that succeed before one fails; -1: none fails */
static int held;

void *lofi__mem_system_create(size_t bytes)
{
    if (until_failure == 0) return NULL;
    if (until_failure > 0) until_failure--;
    void *memory = malloc(bytes);
    if (memory == NULL) return NULL;
    memset(memory, 0xa5, bytes); /* nothing may rely on fresh memory being zero */
    held++;
    return memory;
}

void lofi__mem_system_destroy(void *memory)
{
    held -= memory != NULL;
    free(memory);
}

static lofi_status make_topology(void **out)
{
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    lofi_topology *topology = NULL;

    options.world_size = 6;
    options.node_size = 3;
    lofi_status st = lofi_topology_create(&options, world_gather, NULL, &topology);
    *out = topology;
    return st;
}

static lofi_topology *fixed_topology;

static lofi_status make_group(void **out)
{
    static const int ranks[] = {5, 0, 3};
    lofi_group *group = NULL;
    lofi_status st = lofi_group_create(fixed_topology, ranks, 3, &group);
    *out = group;
    return st;
}

static lofi_status make_session(void **out)
{
    lofi_session *session = NULL;
    lofi_status st = lofi_session_create(&session);
    *out = session;
    return st;
}

/* A world of one rank. */
static lofi_status gather_alone(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx;
    memcpy(all, mine, bytes);
    return LOFI_OK;
}

static lofi_status make_comm(const char *transport, void **out)
{
    lofi_comm_options options = LOFI_COMM_OPTIONS_INIT;
    lofi_host_functions host = LOFI_HOST_FUNCTIONS_INIT;
    lofi_comm *comm = NULL;

    host.all_gather = gather_alone;
    options.transport = transport;
    options.host = &host;
    lofi_status st = lofi_comm_create(&options, gather_alone, NULL, &comm);
    *out = comm;
    return st;
}

static lofi_status make_self(void **out)
{
    return make_comm("self", out);
}

static lofi_status make_host(void **out)
{
    return make_comm("host", out);
}

static lofi_status make_shm(void **out)
{
    return make_comm("shm", out);
}

static lofi_comm *fixed_comm;

/* Refused before it is queued: the communicator goes on. */
static lofi_status make_request(void **out)
{
    float data = 1;
    lofi_request *request = NULL;
    lofi_task task = LOFI_TASK_INIT;

    task.collective = LOFI_ALL_REDUCE;
    task.dtype = LOFI_F32;
    task.count = 1;
    task.in = task.out = &data;
    lofi_status st = lofi_post(fixed_comm, &task, NULL, NULL, &request);
    if (st == LOFI_OK) EXPECT(lofi_request_wait(request, -1) == LOFI_OK && data == 1);
    *out = request;
    return st;
}

static lofi_status average(void **out)
{
    float data = 7;

    *out = NULL;
    lofi_status st = lofi_finalize_average(fixed_comm, fixed_comm, LOFI_F32, &data, 1, NULL, 0);
    if (st == LOFI_OK) EXPECT(data == 7);
    return st;
}

static void destroy_comm(void *object)
{
    lofi_comm_destroy(object);
}

static void destroy_request(void *object)
{
    lofi_request_destroy(object);
}

static void destroy_topology(void *object)
{
    lofi_topology_destroy(object);
}

static void destroy_group(void *object)
{
    lofi_group_destroy(object);
}

static void destroy_session(void *object)
{
    lofi_session_destroy(object);
}

#define ANY (-1)

/* Fails one allocation after the other until there are no more to fail. */
static void exhaust(lofi_status (*make)(void **), void (*destroy)(void *), int expected)
{
    int before = held, n = 0;
    void *object = NULL;

    for (;; n++) {
        until_failure = n;
        lofi_set_error("nothing yet");
        lofi_status st = make(&object);
        if (st == LOFI_OK) break;
        EXPECT(st == LOFI_NO_MEMORY);
        EXPECT_ERROR("out of memory");
        EXPECT(object == NULL);
        EXPECT(held == before);
        ASSERT(n < 1000);
    }
    until_failure = -1;
    EXPECT(n == expected || expected == ANY);
    destroy(object);
    EXPECT(held == before);
}

static char folder[64];
static int is_adapter; /* what lies in it */

static void write_text(const char *name, const char *text, int is_tensors)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    const uint64_t length = strlen(text);
    ASSERT(file != NULL);
    if (is_tensors) ASSERT(fwrite(&length, 8, 1, file) == 1);
    ASSERT(fwrite(text, length, 1, file) == 1);
    if (is_tensors) ASSERT(fwrite("datadata", 8, 1, file) == 1);
    ASSERT(fclose(file) == 0);
}

static void remove_folder(const char *of)
{
    static const char *const files[] = {"a.safetensors", "b.safetensors", "config.json",
                                        "model.safetensors.index.json"};
    static const char *const adapters[] = {"adapter_model.safetensors", "adapter_config.json"};
    const char *const *names = is_adapter ? adapters : files;
    char path[160];
    for (size_t i = 0; i < (is_adapter ? 2 : 4); i++) {
        snprintf(path, sizeof path, "%s/%s", of, names[i]);
        EXPECT(unlink(path) == 0);
    }
    EXPECT(rmdir(of) == 0);
}

#define PATH_BYTES 80 /* of an output */

/* An average of `folder` with itself, whose name is put into `path`: PATH_BYTES bytes. */
static lofi_average_files_options average_of_two(const char *const *inputs, char *path)
{
    lofi_average_files_options options = LOFI_AVERAGE_FILES_OPTIONS_INIT;

    snprintf(path, PATH_BYTES, "%s-out", folder);
    options.inputs = inputs;
    options.input_count = 2;
    options.out = path;
    options.threads = 1;
    return options;
}

/* After success there is an output, which is removed; after a failure there is none. */
static lofi_status check_output(const char *path, lofi_status st)
{
    if (st == LOFI_OK)
        remove_folder(path);
    else
        EXPECT(access(path, F_OK) != 0);
    return st;
}

/* Every kind of file and option: two shards, an index, a config, a base, names with a prefix, and
 * numbers that are too large for the dtype. */
static lofi_status average_files(void **out)
{
    static const double weights[] = {1, 2};
    static const char *const prefixes[] = {"m."};
    const char *const inputs[] = {folder, folder};
    char path[PATH_BYTES];
    lofi_average_files_options options = average_of_two(inputs, path);

    *out = NULL;
    options.weights = weights;
    options.base = folder;
    options.only = "x";
    options.dtype = "f16";
    options.strip_prefixes = prefixes;
    options.strip_count = 1;
    options.sha256 = options.verify = 1;
    lofi_status st = lofi_average_files(&options, NULL);
    return check_output(path, st);
}

static lofi_status score_one(void *ctx, const char *path, double *score)
{
    (void)ctx;
    EXPECT(access(path, F_OK) == 0);
    *score = 1;
    return LOFI_OK;
}

static lofi_status make_soup(void **out)
{
    const char *const inputs[] = {folder, folder};
    lofi_soup_options options = LOFI_SOUP_OPTIONS_INIT;
    char path[PATH_BYTES];
    lofi_average_files_options average = average_of_two(inputs, path);

    *out = NULL;
    options.average = &average;
    options.score = score_one;
    lofi_status st = lofi_soup(&options, NULL);
    return check_output(path, st);
}

static void test_files(void)
{
    snprintf(folder, sizeof folder, P_tmpdir "/lofi-test-memory-%d", (int)getpid());
    ASSERT(mkdir(folder, 0700) == 0);
    write_text("a.safetensors",
               "{\"__metadata__\":{\"k\":\"v\"},"
               "\"m.x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
               1);
    write_text("b.safetensors",
               "{\"m.y\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 1);
    write_text("model.safetensors.index.json",
               "{\"weight_map\":{\"m.x\":\"a.safetensors\",\"m.y\":\"b.safetensors\"}}", 0);
    write_text("config.json", "{\"dtype\":\"float32\"}", 0);
    lofi_log_set_level(LOFI_LOG_ERROR);
    exhaust(average_files, destroy_request, ANY);
    exhaust(make_soup, destroy_request, ANY);
    lofi_log_set_level(LOFI_LOG_WARN);
    remove_folder(folder);
}

static const char *lora;

/* Of adapters whose scales differ, by a pattern; without `lora` it warns. */
static lofi_status average_adapters(void **out)
{
    const char *const inputs[] = {folder, folder};
    char path[PATH_BYTES];
    lofi_average_files_options options = average_of_two(inputs, path);

    *out = NULL;
    options.lora = lora;
    options.verify = 1;
    lofi_status st = lofi_average_files(&options, NULL);
    return check_output(path, st);
}

static void test_adapters(void)
{
    static const char *const all[] = {NULL, "exact", "svd=2"};

    is_adapter = 1;
    ASSERT(mkdir(folder, 0700) == 0);
    write_text("adapter_model.safetensors",
               "{\"x.lora_A.weight\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]},"
               "\"x.lora_B.weight\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[4,8]}}",
               1);
    write_text("adapter_config.json",
               "{\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":3,\"alpha_pattern\":{\"x\":2}}", 0);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        lora = all[i];
        exhaust(average_adapters, destroy_request, ANY);
    }
    remove_folder(folder);
}

static lofi_status gather_nothing(void *ctx, const void *mine, size_t bytes, void *all)
{
    (void)ctx, (void)mine, (void)bytes, (void)all;
    return LOFI_TIMED_OUT;
}

/* Other failures leak nothing either. */
static void test_other_failures(void)
{
    static const int repeated[] = {0, 1, 1};
    lofi_topology_options options = LOFI_TOPOLOGY_OPTIONS_INIT;
    lofi_topology *topology = NULL;
    lofi_group *group = NULL;
    int before = held;

    EXPECT(lofi_topology_create(&options, gather_nothing, NULL, &topology) == LOFI_TIMED_OUT);
    options.world_size = 5;
    options.node_size = 3;
    EXPECT(lofi_topology_create(&options, world_gather, NULL, &topology) == LOFI_INVALID);
    EXPECT(lofi_group_create(fixed_topology, repeated, 3, &group) == LOFI_INVALID);
    EXPECT(topology == NULL && group == NULL && held == before);
}

static void test_overflow(void)
{
    EXPECT(lofi__mem_create(SIZE_MAX / 2, 3) == NULL);
    EXPECT_ERROR("elements of 3 bytes");
    EXPECT(lofi__mem_create(SIZE_MAX, SIZE_MAX) == NULL);
    void *empty = lofi__mem_create(0, 8);
    EXPECT(empty != NULL);
    lofi__mem_destroy(empty);
    lofi__mem_destroy(NULL);
    unsigned char *zeros = lofi__mem_create(10, 10);
    ASSERT(zeros != NULL);
    for (int i = 0; i < 100; i++)
        EXPECT(zeros[i] == 0);
    lofi__mem_destroy(zeros);
}

int main(void)
{
    until_failure = -1;
    exhaust(make_topology, destroy_topology, 2);
    fixed_topology = world_topology(0, 6, 3);
    exhaust(make_group, destroy_group, 2);
    exhaust(make_session, destroy_session, 1);
    exhaust(make_self, destroy_comm, 2);
    exhaust(make_host, destroy_comm, 6);
    exhaust(make_shm, destroy_comm, 7);
    void *comm = NULL;
    ASSERT(make_self(&comm) == LOFI_OK);
    fixed_comm = comm;
    exhaust(make_request, destroy_request, 1);
    exhaust(average, destroy_request, 5);
    lofi_comm_destroy(fixed_comm);
    test_files();
    test_adapters();
    test_other_failures();
    test_overflow();
    lofi_topology_destroy(fixed_topology);
    EXPECT(held == 0);
    return test_end();
}
