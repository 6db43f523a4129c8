/* SPDX-License-Identifier: MIT */
/*
 * The facts of this rank: its request for a node size, its host, its settings.
 *
 * Each rank reads its own environment and sends the result. To send the texts and let everyone
 * parse them would give the same sentences, but would let one rank's environment decide how
 * another's is read. A value that can't be read does not end the call here: the other ranks
 * would wait in the allgather for a rank that never comes.
 */
#define _POSIX_C_SOURCE 200809L
#include "nodes/facts.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const source_names[LOFI__SOURCE_COUNT] = {
    [LOFI__FROM_HOSTS] = "host names",
    [LOFI__FROM_ARGUMENT] = "node_size",
    [LOFI__FROM_LOFI] = "LOFI_NODE_SIZE",
    [LOFI__FROM_TORCHRUN] = "LOCAL_WORLD_SIZE",
    [LOFI__FROM_SLURM] = "SLURM_NTASKS_PER_NODE",
};

const char *lofi__source_name(int source)
{
    return source_names[source];
}

/* Reads decimal digits up to INT_MAX; returns what follows them, or NULL. */
static const char *read_count(const char *text, int *count)
{
    const char *c = text;
    int value = 0;

    for (; *c >= '0' && *c <= '9'; c++) {
        int digit = *c - '0';
        if (value > (INT_MAX - digit) / 10) return NULL;
        value = value * 10 + digit;
    }
    if (c == text || value < 1) return NULL;
    *count = value;
    return c;
}

/* The "(x2)" of Slurm's "4(x2)": this many hosts in a row have the same number of tasks. */
static const char *skip_repeat(const char *text)
{
    int repeats;

    if (strncmp(text, "(x", 2) != 0) return text;
    const char *rest = read_count(text + 2, &repeats);
    return rest != NULL && *rest == ')' ? rest + 1 : text;
}

static void read_variable(struct lofi__facts *facts, int source, const char *value)
{
    const char *name = lofi__source_name(source);
    int count = 0;
    const char *rest = read_count(value, &count);

    if (rest != NULL && source == LOFI__FROM_SLURM) rest = skip_repeat(rest);
    if (rest != NULL && source == LOFI__FROM_SLURM && *rest == ',') {
        snprintf(facts->problem, sizeof facts->problem,
                 "%s is '%.64s', different numbers of tasks on different hosts: nodes must be of "
                 "equal size; start as many tasks on each host, or set LOFI_NODE_SIZE",
                 name, value);
    } else if (rest == NULL || *rest != '\0') {
        snprintf(facts->problem, sizeof facts->problem,
                 "%s is '%.64s', not a positive whole number (up to %d)", name, value, INT_MAX);
    } else {
        facts->node_size = count;
        facts->source = source;
    }
}

static void find_node_size(struct lofi__facts *facts, int argument)
{
    if (argument < 0) {
        snprintf(facts->problem, sizeof facts->problem,
                 "node_size is %d, not a positive whole number", argument);
        return;
    }
    if (argument > 0) {
        facts->node_size = argument;
        facts->source = LOFI__FROM_ARGUMENT;
        return;
    }
    for (int source = LOFI__FROM_LOFI; source < LOFI__SOURCE_COUNT; source++) {
        const char *value = getenv(lofi__source_name(source));
        if (value == NULL || *value == '\0') continue;
        read_variable(facts, source, value);
        return;
    }
}

static void find_host(struct lofi__facts *facts)
{
    /* A name that is cut off need not be terminated, says POSIX. */
    if (gethostname(facts->host, sizeof facts->host - 1) != 0) facts->host[0] = '\0';
    facts->host[sizeof facts->host - 1] = '\0';
    if (facts->host[0] != '\0' || facts->source != LOFI__FROM_HOSTS) return;
    snprintf(facts->problem, sizeof facts->problem,
             "the host has no name to count the ranks of a node by: set LOFI_NODE_SIZE");
}

void lofi__facts_fill(struct lofi__facts *facts, const lofi_topology_options *options)
{
    const char *settings = options->settings != NULL ? options->settings : "";

    memset(facts, 0, sizeof *facts);
    facts->magic = LOFI__FACTS_MAGIC;
    facts->layout = LOFI__FACTS_LAYOUT;
    facts->version = (uint32_t)lofi_version();
    facts->rank = options->rank;
    facts->world_size = options->world_size;
    snprintf(facts->settings, sizeof facts->settings, "%s", settings);

    if (options->problem != NULL && options->problem[0] != '\0') {
        snprintf(facts->problem, sizeof facts->problem, "%s", options->problem);
        return;
    }
    if (strlen(settings) >= sizeof facts->settings) {
        snprintf(facts->problem, sizeof facts->problem,
                 "the settings take %zu bytes: at most %zu are possible", strlen(settings),
                 sizeof facts->settings - 1);
        return;
    }
    find_node_size(facts, options->node_size);
    if (facts->problem[0] == '\0') find_host(facts);
}
