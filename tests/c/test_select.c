/* SPDX-License-Identifier: MIT */
/* Which names expressions select, and expressions of other dialects. */
#include "test.h"

static int selects(const char *only, const char *skip, const char *name)
{
    unsigned char is_selected = 2;
    ASSERT(lofi_names_select(only, skip, &name, 1, &is_selected) == LOFI_OK);
    return is_selected;
}

static void test_names(void)
{
    const char *const names[] = {"model.0.weight", "model.0.bias", "ema.0.weight"};
    unsigned char is_selected[3];

    ASSERT(lofi_names_select("^model[.]", "bias$", names, 3, is_selected) == LOFI_OK);
    EXPECT(is_selected[0] == 1 && is_selected[1] == 0 && is_selected[2] == 0);
    ASSERT(lofi_names_select(NULL, NULL, names, 3, is_selected) == LOFI_OK);
    EXPECT(is_selected[0] == 1 && is_selected[1] == 1 && is_selected[2] == 1);
    ASSERT(lofi_names_select(NULL, "0", names, 3, is_selected) == LOFI_OK);
    EXPECT(is_selected[0] == 0 && is_selected[1] == 0 && is_selected[2] == 0);
    EXPECT(lofi_names_select(NULL, NULL, NULL, 0, NULL) == LOFI_OK);
}

static void test_dialect(void)
{
    EXPECT(selects("h\\.[0-9]+\\.w", NULL, "h.12.w"));
    EXPECT(!selects("h\\.[0-9]+\\.w", NULL, "hx12.w"));
    EXPECT(selects("(q|k)_proj", NULL, "attn.k_proj.weight"));
    EXPECT(selects("\\bq\\b", NULL, "a.q.b") && !selects("\\bq\\b", NULL, "a.qk.b"));
    /* brackets that hold brackets, and classes: no escape is in them */
    EXPECT(selects("[]d]\\.", NULL, "].") && selects("[^]d]x", NULL, "ax"));
    EXPECT(selects("h[[:digit:]]\\.", NULL, "h7.") && selects("[[.-.]]\\.", NULL, "-."));
    EXPECT(selects("[[]\\.", NULL, "[."));
}

static void test_foreign(void)
{
    static const char *const foreign[] = {
        "h\\.\\d+", "\\D", "[\\w.]+", "[^]\\w]", "[[:digit:]\\d]", "a\\\\[\\d]", "\\A", "[a\\-z]",
    };
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        const char *const name = "h.1";
        unsigned char is_selected;
        EXPECT(lofi_names_select(foreign[i], NULL, &name, 1, &is_selected) == LOFI_INVALID);
        EXPECT_ERROR("is not POSIX there");
        EXPECT_ERROR("only");
        EXPECT(lofi_names_select(NULL, foreign[i], &name, 1, &is_selected) == LOFI_INVALID);
        EXPECT_ERROR("skip");
    }
}

static void test_wrong(void)
{
    static const char *const wrong[] = {"(", "[a", "[\\", "a\\", "*(", "(?:a)", "[[:digit:"};
    const char *const name = "a";
    unsigned char is_selected;

    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        EXPECT(lofi_names_select(wrong[i], NULL, &name, 1, &is_selected) == LOFI_INVALID);
    EXPECT(lofi_names_select(NULL, NULL, NULL, 1, &is_selected) == LOFI_INVALID);
    EXPECT(lofi_names_select(NULL, NULL, &name, 1, NULL) == LOFI_INVALID);
}

int main(void)
{
    test_names();
    test_dialect();
    test_foreign();
    test_wrong();
    return test_end();
}
