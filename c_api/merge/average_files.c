/* SPDX-License-Identifier: MIT */
/*
 * The average of files, from the plan to the name. Each step undoes nothing of the ones before:
 * until the last one, all that exists has a hidden name and goes with lofi__output_discard.
 */
#include "kernels/kernels.h"
#include "merge/findings.h"
#include "merge/lora.h"
#include "merge/output.h"
#include "merge/plan.h"
#include "merge/statistics.h"
#include "merge/stream.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static lofi_status check_unchanged(const struct lofi__plan *plan)
{
    for (int s = 0; s < plan->source_count; s++)
        for (uint64_t f = 0; f < plan->sources[s]->file_count; f++) {
            lofi_status st = lofi__file_check_unchanged(&plan->sources[s]->files[f]);
            if (st != LOFI_OK) return st;
        }
    return LOFI_OK;
}

static uint64_t factor_bytes(const struct lofi__plan *plan)
{
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < plan->job_count; i++)
        for (int s = 0; s < plan->source_count && plan->jobs[i].work == LOFI__WORK_FACTOR; s++)
            bytes += plan->jobs[i].places[s]->entry->bytes;
    return bytes;
}

/* Products first, then all other tensors. */
static lofi_status run(const struct lofi__plan *plan, struct lofi__stream_options *stream,
                       struct lofi__lora_error *error)
{
    lofi_status st = LOFI_OK;

    if (plan->lora != NULL) st = lofi__lora_run(plan, stream, error);
    stream->done_bytes = factor_bytes(plan);
    return st == LOFI_OK ? lofi__stream_run(plan, stream) : st;
}

/* Opens the output as a reader would, and compares it with the average taken once more. */
static lofi_status verify(const struct lofi__plan *plan, const struct lofi__place_on_disk *disk,
                          struct lofi__stream_options *stream)
{
    for (uint64_t i = 0; i < plan->output_count; i++) {
        struct lofi__file file = {.fd = -1};
        lofi_status st = lofi__file_open(disk->paths[i], &file);
        const int is_whole = st == LOFI_OK && file.header.count == plan->outputs[i].job_count;
        if (!is_whole && st != LOFI_NO_MEMORY) {
            lofi_set_error("%s: it is not as it was written", plan->outputs[i].path);
            st = LOFI_CORRUPT;
        }
        lofi__file_close(&file);
        if (st != LOFI_OK) return st;
    }
    stream->is_check = 1;
    return run(plan, stream, NULL);
}

static lofi_status write_folder(const struct lofi__plan *plan, struct lofi__place_on_disk *disk)
{
    lofi_status st = lofi__others_copy(disk);
    if (st == LOFI_OK && plan->index_name != NULL)
        st = lofi__output_add(disk, plan->index_name, plan->index, plan->index_bytes);
    return st;
}

static lofi_status write_output(const struct lofi__plan *plan, struct lofi__place_on_disk *disk,
                                int threads, struct lofi__findings *findings,
                                struct lofi__lora_error *error)
{
    lofi_status st = lofi__output_create(disk);
    if (st == LOFI_OK && plan->is_folder) st = write_folder(plan, disk);
    if (st != LOFI_OK) return st;
    struct lofi__stream_options stream = {
        .fds = disk->fds, .findings = findings, .threads = threads};
    st = run(plan, &stream, error);
    if (st == LOFI_OK && plan->options.verify) st = verify(plan, disk, &stream);
    if (st == LOFI_OK) st = check_unchanged(plan);
    return st == LOFI_OK ? lofi__output_commit(disk) : st;
}

/* The name is cut if it has to be. */
static void report_error(const struct lofi__plan *plan, const struct lofi__lora_error *error,
                         lofi_average_report *report)
{
    if (plan->lora == NULL) return;
    report->product_count = plan->lora->module_count;
    report->product_error = error->whole;
    report->worst_error = error->worst;
    snprintf(report->worst_name, sizeof report->worst_name, "%s",
             error->worst_name != NULL ? error->worst_name : "");
}

static void fill_report(const struct lofi__plan *plan, int threads,
                        const struct lofi__lora_error *error, lofi_average_report *report)
{
    if (report == NULL) return;
    *report = (lofi_average_report){.bytes_read = lofi__stream_bytes(plan),
                                    .file_count = plan->output_count,
                                    .threads = threads,
                                    .statistics_count = plan->statistics_count};
    for (uint64_t i = 0; i < plan->output_count; i++)
        report->bytes_written += plan->outputs[i].header_bytes + plan->outputs[i].data_bytes;
    for (uint64_t i = 0; i < plan->job_count; i++)
        report->averaged_count +=
            plan->jobs[i].work == LOFI__WORK_MEAN || plan->jobs[i].work == LOFI__WORK_FACTOR;
    report->copied_count = plan->job_count - report->averaged_count;
    report_error(plan, error, report);
}

lofi_status lofi__average_files(const lofi_average_files_options *options,
                                const struct lofi__role *role, lofi_average_report *report)
{
    struct lofi__place_on_disk disk = {0};
    struct lofi__findings findings;
    struct lofi__lora_error error = {0};
    struct lofi__plan plan;

    lofi_status st = lofi__plan_create(options, role, &plan);
    lofi__findings_create(&findings, &plan);
    if (st == LOFI_OK) st = lofi__output_check(&plan, &disk);
    if (st == LOFI_OK) st = lofi__statistics_count(&plan);
    if (st == LOFI_OK) st = lofi__plan_describe(&plan);
    if (st == LOFI_OK) {
        const int threads = lofi__stream_threads(&plan);
        st = write_output(&plan, &disk, threads, &findings, &error);
        if (st == LOFI_OK) fill_report(&plan, threads, &error, report);
        if (st == LOFI_OK) lofi__findings_tell(&findings);
        if (st == LOFI_OK && plan.statistics_count > 0)
            lofi_log(LOFI_LOG_WARN, "%s: %" PRIu64 " " LOFI__STATISTICS_NOTE, plan.options.out,
                     plan.statistics_count);
    }
    lofi__findings_clear(&findings);
    lofi__output_discard(&disk);
    lofi__plan_clear(&plan);
    return st;
}

lofi_status lofi_average_files(const lofi_average_files_options *options,
                               lofi_average_report *report)
{
    return lofi__average_files(options, NULL, report);
}
