/* SPDX-License-Identifier: MIT */
/* Kernels that are easy to read rather than fast: one thread for each number that comes out. */
#include "mlp.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 256 /* threads */

static int blocks(int threads)
{
    return (threads + BLOCK - 1) / BLOCK;
}

#define LAST(array) (array)
#define FIRST(array) ((array) + MLP_LAST_SIZE)

/* ---- kernels ------------------------------------------------------------------------------------- */

/* out[row][o] = bias[o] + sum over i of weight[o][i] * in[row][i] */
static __global__ void layer(float *out, const float *in, const float *weights, int rows,
                             int in_size, int out_size, int is_hidden)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = index / out_size, o = index % out_size;

    if (row >= rows) return;
    float sum = weights[out_size * in_size + o];
    for (int i = 0; i < in_size; i++)
        sum += weights[o * in_size + i] * in[row * in_size + i];
    out[index] = is_hidden && sum < 0.0f ? 0.0f : sum;
}

/* Scores become the slope of the mean loss by them; sums gets the losses and the hits. */
static __global__ void softmax(float *scores, const unsigned char *label, float *sums, int rows)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;

    if (row >= rows) return;
    float *score = scores + row * DIGITS_CLASSES;
    const int wanted = label[row];
    int likely = 0;
    for (int c = 1; c < DIGITS_CLASSES; c++)
        if (score[c] > score[likely]) likely = c;
    const float largest = score[likely], own = score[wanted];
    float sum = 0.0f;
    for (int c = 0; c < DIGITS_CLASSES; c++)
        sum += expf(score[c] - largest); /* at most 1: it can't overflow */
    for (int c = 0; c < DIGITS_CLASSES; c++)
        score[c] = (expf(score[c] - largest) / sum - (c == wanted ? 1.0f : 0.0f)) / rows;
    atomicAdd(&sums[0], largest + logf(sum) - own);
    atomicAdd(&sums[1], likely == wanted ? 1.0f : 0.0f);
}

/* gradient[o][i] = sum over rows of slope[row][o] * in[row][i]; of the biases as if `in` were 1 */
static __global__ void by_weights(float *gradient, const float *slope, const float *in, int rows,
                                  int in_size, int out_size)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    const int is_bias = index >= out_size * in_size;
    const int o = is_bias ? index - out_size * in_size : index / in_size, i = index % in_size;
    float sum = 0.0f;

    if (o >= out_size) return;
    for (int row = 0; row < rows; row++)
        sum += slope[row * out_size + o] * (is_bias ? 1.0f : in[row * in_size + i]);
    gradient[index] = sum;
}

/* The slope by what went into a layer, where the ReLU let it through. */
static __global__ void by_input(float *in_slope, const float *slope, const float *weights,
                                const float *in, int rows, int in_size, int out_size)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = index / in_size, i = index % in_size;
    float sum = 0.0f;

    if (row >= rows) return;
    for (int o = 0; o < out_size; o++)
        sum += slope[row * out_size + o] * weights[o * in_size + i];
    in_slope[index] = in[index] > 0.0f ? sum : 0.0f;
}

static __global__ void descend(float *weights, float *velocity, const float *gradient, int count,
                               float rate, float momentum)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;

    if (index >= count) return;
    velocity[index] = momentum * velocity[index] + gradient[index];
    weights[index] -= rate * velocity[index];
}

/* ---- the model ----------------------------------------------------------------------------------- */

cudaError_t mlp_forward(const struct mlp *mlp, const struct mlp_digits *digits, int first,
                        int count)
{
    const float *pixels = digits->pixels + (size_t)first * DIGITS_PIXELS;

    layer<<<blocks(count * MLP_HIDDEN), BLOCK, 0, mlp->stream>>>(
        mlp->hidden, pixels, FIRST(mlp->weights), count, DIGITS_PIXELS, MLP_HIDDEN, 1);
    layer<<<blocks(count * DIGITS_CLASSES), BLOCK, 0, mlp->stream>>>(
        mlp->slope, mlp->hidden, LAST(mlp->weights), count, MLP_HIDDEN, DIGITS_CLASSES, 0);
    softmax<<<blocks(count), BLOCK, 0, mlp->stream>>>(mlp->slope, digits->label + first, mlp->sums,
                                                      count);
    return cudaGetLastError();
}

cudaError_t mlp_backward_last(const struct mlp *mlp, const struct mlp_digits *digits, int first,
                              int count)
{
    (void)digits, (void)first;
    by_weights<<<blocks(MLP_LAST_SIZE), BLOCK, 0, mlp->stream>>>(
        LAST(mlp->gradient), mlp->slope, mlp->hidden, count, MLP_HIDDEN, DIGITS_CLASSES);
    return cudaGetLastError();
}

cudaError_t mlp_backward_first(const struct mlp *mlp, const struct mlp_digits *digits, int first,
                               int count)
{
    const float *pixels = digits->pixels + (size_t)first * DIGITS_PIXELS;

    by_input<<<blocks(count * MLP_HIDDEN), BLOCK, 0, mlp->stream>>>(
        mlp->hidden_slope, mlp->slope, LAST(mlp->weights), mlp->hidden, count, MLP_HIDDEN,
        DIGITS_CLASSES);
    by_weights<<<blocks(MLP_FIRST_SIZE), BLOCK, 0, mlp->stream>>>(
        FIRST(mlp->gradient), mlp->hidden_slope, pixels, count, DIGITS_PIXELS, MLP_HIDDEN);
    return cudaGetLastError();
}

cudaError_t mlp_step(const struct mlp *mlp, float rate, float momentum)
{
    descend<<<blocks(MLP_SIZE), BLOCK, 0, mlp->stream>>>(mlp->weights, mlp->velocity, mlp->gradient,
                                                         MLP_SIZE, rate, momentum);
    return cudaGetLastError();
}

cudaError_t mlp_score(const struct mlp *mlp, const struct mlp_digits *digits,
                      struct mlp_score *score)
{
    float sums[2] = {0, 0};

    cudaError_t error = cudaMemsetAsync(mlp->sums, 0, sizeof sums, mlp->stream);
    for (int first = 0; first < digits->count && error == cudaSuccess; first += mlp->rows) {
        const int left = digits->count - first;
        error = mlp_forward(mlp, digits, first, left < mlp->rows ? left : mlp->rows);
    }
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(sums, mlp->sums, sizeof sums, cudaMemcpyDeviceToHost, mlp->stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(mlp->stream);
    score->loss = (double)sums[0] / digits->count;
    score->accuracy = (double)sums[1] / digits->count;
    return error;
}

/* ---- memory -------------------------------------------------------------------------------------- */

static cudaError_t allocate(float **out, size_t count)
{
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, count * sizeof(float));
    *out = (float *)memory;
    return error;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static cudaError_t fill(float *weights, unsigned long long seed)
{
    float *host = (float *)malloc(MLP_SIZE * sizeof *host);
    uint64_t state = seed;

    if (host == NULL) return cudaErrorMemoryAllocation;
    /* The upper 24 bits fill a float's mantissa: from -0.1 to 0.1. */
    for (int i = 0; i < MLP_SIZE; i++)
        host[i] = ((float)(next_random(&state) >> 40) / 8388608.0f - 1.0f) * 0.1f;
    cudaError_t error = cudaMemcpy(weights, host, MLP_SIZE * sizeof *host, cudaMemcpyHostToDevice);
    free(host);
    return error;
}

cudaError_t mlp_create(struct mlp *mlp, int rows, unsigned long long seed, cudaStream_t stream)
{
    memset(mlp, 0, sizeof *mlp);
    mlp->stream = stream;
    mlp->rows = rows;
    cudaError_t error = allocate(&mlp->weights, MLP_SIZE);
    if (error == cudaSuccess) error = allocate(&mlp->gradient, MLP_SIZE);
    if (error == cudaSuccess) error = allocate(&mlp->velocity, MLP_SIZE);
    if (error == cudaSuccess) error = allocate(&mlp->hidden, (size_t)rows * MLP_HIDDEN);
    if (error == cudaSuccess) error = allocate(&mlp->hidden_slope, (size_t)rows * MLP_HIDDEN);
    if (error == cudaSuccess) error = allocate(&mlp->slope, (size_t)rows * DIGITS_CLASSES);
    if (error == cudaSuccess) error = allocate(&mlp->sums, 2);
    if (error == cudaSuccess) error = cudaMemset(mlp->velocity, 0, MLP_SIZE * sizeof(float));
    if (error == cudaSuccess) error = cudaMemset(mlp->sums, 0, 2 * sizeof(float));
    if (error == cudaSuccess) error = fill(mlp->weights, seed);
    /* The stream does not wait for what the default one has done here. */
    return error == cudaSuccess ? cudaDeviceSynchronize() : error;
}

void mlp_destroy(struct mlp *mlp)
{
    cudaFree(mlp->sums);
    cudaFree(mlp->slope);
    cudaFree(mlp->hidden_slope);
    cudaFree(mlp->hidden);
    cudaFree(mlp->velocity);
    cudaFree(mlp->gradient);
    cudaFree(mlp->weights);
    memset(mlp, 0, sizeof *mlp);
}

cudaError_t mlp_upload(const struct mlp *mlp, const struct digits *from, struct mlp_digits *to)
{
    const size_t pixels_bytes = from->count * DIGITS_PIXELS * sizeof *from->pixels;
    void *label = NULL;

    memset(to, 0, sizeof *to);
    to->count = (int)from->count;
    cudaError_t error = allocate(&to->pixels, from->count * DIGITS_PIXELS);
    if (error == cudaSuccess) error = cudaMalloc(&label, from->count);
    to->label = (unsigned char *)label;
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to->pixels, from->pixels, pixels_bytes, cudaMemcpyHostToDevice,
                                mlp->stream);
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to->label, from->label, from->count, cudaMemcpyHostToDevice,
                                mlp->stream);
    return error == cudaSuccess ? cudaStreamSynchronize(mlp->stream) : error;
}

void mlp_free_digits(struct mlp_digits *digits)
{
    cudaFree(digits->label);
    cudaFree(digits->pixels);
    memset(digits, 0, sizeof *digits);
}
