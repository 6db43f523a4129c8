/* SPDX-License-Identifier: MIT */
/* The config.json of transformers. */
#ifndef LOFI_MERGE_CONFIG_H
#define LOFI_MERGE_CONFIG_H

#include "lofi.h"

/* Puts this dtype where the text names that of the weights ("dtype", in older files "torch_dtype";
 * also in the configs of parts, such as "text_config"); `*text`, of lofi__mem, is then another. A
 * text that is no JSON object stays as it is, with a warning that names `path`. */
lofi_status lofi__config_set_dtype(const char *path, const char *dtype, char **text, size_t *bytes);

#endif /* LOFI_MERGE_CONFIG_H */
