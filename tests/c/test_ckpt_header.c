/* SPDX-License-Identifier: MIT */
/* Headers and indexes as text: what is accepted, and what each refusal says. */
#include "ckpt/header.h"
#include "ckpt/index.h"
#include "ckpt/kind.h"
#include "ckpt/sha256.h"
#include "test.h"

#define ENTRY(dtype, shape, offsets)                                                               \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static lofi_status parse(const char *text, uint64_t data_bytes)
{
    struct lofi__header header;
    lofi_status st = lofi__header_parse("file", text, strlen(text), data_bytes, &header);
    lofi__header_clear(&header);
    return st;
}

static void test_accepted(void)
{
    static const char *const text = "{\"b\":" ENTRY(
        "BF16", "[2,3]", "[8,20]") ",\"__metadata__\":{\"format\":\"pt\"},"
                                   "\"z\":" ENTRY("F64", "[]", "[0,8]") ",\"e\":" ENTRY(
                                       "I8", "[0,7]", "[8,8]") "}   ";
    struct lofi__header h;

    ASSERT(lofi__header_parse("file", text, strlen(text), 20, &h) == LOFI_OK);
    ASSERT(h.count == 3 && h.metadata_count == 1);
    EXPECT(strcmp(h.entries[0].name, "z") == 0 && h.entries[0].dims == 0);
    EXPECT(strcmp(h.entries[1].name, "e") == 0 && h.entries[1].bytes == 0);
    EXPECT(strcmp(h.entries[2].name, "b") == 0 && h.entries[2].count == 6);
    EXPECT(h.entries[2].begin == 8 && h.entries[2].bytes == 12 && h.entries[2].shape[1] == 3);
    EXPECT(strcmp(h.metadata[0].value, "pt") == 0);
    lofi__header_clear(&h);
    EXPECT(parse("{}", 0) == LOFI_OK);
    EXPECT(parse("{\"__metadata__\":null}", 0) == LOFI_OK);
    EXPECT(parse("{\"x\":" ENTRY("F4", "[3,2]", "[0,3]") "}", 3) == LOFI_OK);
}

static void test_refused(void)
{
    static const struct {
        const char *text;
        uint64_t bytes;
        const char *part;
    } bad[] = {
        {"", 0, "nothing"},
        {"[]", 0, "'{'"},
        {" {}", 0, "'{'"},
        {"{", 0, "not valid"},
        {"{} x", 0, "not valid"},
        {"{\"\xff\":1}", 0, "not valid"},
        {"{\"a\":1}", 0, "dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, "dtype, shape"},
        {"{\"a\\u0000b\":" ENTRY("F32", "[]", "[0,4]") "}", 4, "NUL"},
        {"{\"a\":" ENTRY("F33", "[]", "[0,4]") "}", 4, "'F33'"},
        {"{\"a\":" ENTRY("F32", "[-1]", "[0,4]") "}", 4, "whole numbers"},
        {"{\"a\":" ENTRY("F32", "[1.0]", "[0,4]") "}", 4, "whole numbers"},
        {"{\"a\":" ENTRY("F32", "1", "[0,4]") "}", 4, "not a list"},
        {"{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "[0,4]") "}", 4, "overflows"},
        {"{\"a\":" ENTRY("F32", "[4611686018427387904]", "[0,4]") "}", 4, "overflows"},
        {"{\"a\":" ENTRY("F32", "[18446744073709551616]", "[0,4]") "}", 4, "whole numbers"},
        {"{\"a\":" ENTRY("F32", "[1]", "[0,4,5]") "}", 4, "two whole numbers"},
        {"{\"a\":" ENTRY("F32", "[1]", "[4,0]") "}", 4, "end before they begin"},
        {"{\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 3, "cut short"},
        {"{\"a\":" ENTRY("F32", "[1]", "[0,3]") "}", 3, "take 32 bits"},
        {"{\"a\":" ENTRY("F4", "[3]", "[0,1]") "}", 1, "take 12 bits"},
        {"{\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 5, "behind its header"},
        {"{\"a\":" ENTRY("F32", "[1]", "[1,5]") "}", 5, "gap"},
        {"{\"a\":" ENTRY("U8", "[2]", "[0,2]") ",\"b\":" ENTRY("U8", "[2]", "[1,3]") "}", 3,
         "overlaps"},
        {"{\"a\":" ENTRY("U8", "[0]", "[0,0]") ",\"a\":" ENTRY("U8", "[2]", "[0,2]") "}", 2,
         "'a' twice"},
        {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "'k' twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "other than text"},
        {"{\"__metadata__\":[]}", 0, "not an object"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (!EXPECT(parse(bad[i].text, bad[i].bytes) == LOFI_CORRUPT))
            fprintf(stderr, "  %s\n", bad[i].text);
        EXPECT_ERROR(bad[i].part);
        EXPECT_ERROR("file");
    }
}

/* Cut anywhere, a header is refused. */
static void test_truncated(void)
{
    static const char *const text =
        "{\"__metadata__\":{\"a\":\"\\u00e9\"},\"a\":" ENTRY("F32", "[1,2]", "[0,8]") "}";
    for (size_t length = 0; length < strlen(text); length++) {
        struct lofi__header h;
        EXPECT(lofi__header_parse("file", text, length, 8, &h) == LOFI_CORRUPT);
        lofi__header_clear(&h);
    }
    EXPECT(parse(text, 8) == LOFI_OK);
}

static lofi_status parse_index(const char *text)
{
    struct lofi__index index;
    lofi_status st = lofi__index_parse("index", text, strlen(text), &index);
    if (st == LOFI_OK) EXPECT(index.file_count <= index.count);
    lofi__index_clear(&index);
    return st;
}

static void test_index(void)
{
    static const char *const bad[][2] = {
        {"{}", "no weight_map"},
        {"{\"weight_map\":{}}", "no weight_map"},
        {"{\"weight_map\":{\"a\":1}}", "names"},
        {"{\"weight_map\":{\"a\":\"../../x\"}}", "'../../x'"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "'/etc/passwd'"},
        {"{\"weight_map\":{\"a\":\"sub/x\"}}", "'sub/x'"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "'..'"},
        {"{\"weight_map\":{\"a\":\"\"}}", "not the name"},
        {"{\"weight_map\":{\"a\":\"x\\u0000y\"}}", "names"},
        {"{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}", "'a' twice"},
    };

    EXPECT(parse_index("{\"weight_map\":{\"b\":\"y\",\"a\":\"x\",\"c\":\"y\"}}") == LOFI_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        EXPECT(parse_index(bad[i][0]) == LOFI_CORRUPT);
        EXPECT_ERROR(bad[i][1]);
    }
}

static void test_kinds(void)
{
    EXPECT(lofi__kind_of("BF16", 4)->dtype == LOFI_BF16 && lofi__kind_of("BF1", 3) == NULL);
    EXPECT(lofi__kind_parse("bf16") == lofi__kind_of("BF16", 4));
    EXPECT(lofi__kind_parse("float8_e5m2") == lofi__kind_of("F8_E5M2", 7));
    EXPECT(lofi__kind_parse("fp32") == lofi__kind_of("F32", 3));
    EXPECT(lofi__kind_parse("I64") == NULL && lofi__kind_parse("C64") == NULL);
}

/* The examples of FIPS 180-4, and a million letters. */
static void test_sha256(void)
{
    static const struct {
        const char *text;
        int times;
        const char *hex;
    } known[] = {
        {"", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"aaaaaaaaaa", 100000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
    };
    char hex[LOFI__SHA256_HEX];

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        struct lofi__sha256 sha;
        lofi__sha256_begin(&sha);
        for (int n = 0; n < known[i].times; n++)
            lofi__sha256_add(&sha, known[i].text, strlen(known[i].text));
        lofi__sha256_end(&sha, hex);
        EXPECT(strcmp(hex, known[i].hex) == 0);
    }
}

int main(void)
{
    test_accepted();
    test_refused();
    test_truncated();
    test_index();
    test_kinds();
    test_sha256();
    return test_end();
}
