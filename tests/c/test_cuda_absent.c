/* SPDX-License-Identifier: MIT */
/* Without a driver: a sentence that names what is missing, and the rest of the library works. */
#include "cuda/driver.h"
#include "test.h"

int main(void)
{
    const struct lofi__driver *driver = NULL;
    float data[2] = {2, 4}, out = 0;
    const void *in[2] = {&data[0], &data[1]};

    if (lofi__driver_get(&driver) == LOFI_OK) {
        printf("skipped: this machine has a CUDA driver\n");
        return 77;
    }
    if (strstr(lofi_last_error(), "does not start") != NULL) {
        printf("skipped: %s\n", lofi_last_error());
        return 77;
    }
    lofi_set_error("nothing yet");
    EXPECT(lofi__driver_get(&driver) == LOFI_UNSUPPORTED); /* says so each time */
    EXPECT_ERROR("CUDA driver");
    lofi_set_error("nothing yet");
    EXPECT(lofi_cuda_mean(LOFI_F32, data, data, 4, 2, NULL, 1, NULL) == LOFI_UNSUPPORTED);
    if (lofi_cuda_is_built()) {
        EXPECT_ERROR("no CUDA driver: libcuda.so.1 can't be used:");
    } else {
        EXPECT_ERROR("built without its kernels for GPUs");
    }
    EXPECT(data[0] == 2);
    EXPECT(lofi_mean(LOFI_F32, &out, in, NULL, 2, 1) == LOFI_OK && out == 3);
    return test_end();
}
