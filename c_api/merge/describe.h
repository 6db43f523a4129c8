/* SPDX-License-Identifier: MIT */
/* The two parts of lofi__plan_describe. */
#ifndef LOFI_MERGE_DESCRIBE_H
#define LOFI_MERGE_DESCRIBE_H

#include "merge/plan.h"

/* Keys of the metadata that are an average's. */
#define LOFI__OURS "lofi."

/* Writes the header of output `number`; `origin` has what the metadata say of the average. */
lofi_status lofi__describe_header(const struct lofi__plan *plan, uint64_t number,
                                  yyjson_mut_val *origin);

#endif /* LOFI_MERGE_DESCRIBE_H */
