/* SPDX-License-Identifier: MIT */
/*
 * A perceptron with one hidden layer on digits, on a GPU: it knows of no other rank. All functions
 * put their work on the model's stream and return, but for mlp_create, mlp_score and mlp_destroy,
 * which wait for it.
 */
#ifndef MLP_H
#define MLP_H

#include "digits.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MLP_HIDDEN 128

/* One array for all weights, so that one average serves the whole model. The last layer comes
 * first: its gradient is ready first, too. Of each layer the weights, [output][input], then the
 * biases. */
#define MLP_LAST_SIZE (DIGITS_CLASSES * (MLP_HIDDEN + 1))
#define MLP_FIRST_SIZE (MLP_HIDDEN * (DIGITS_PIXELS + 1))
#define MLP_SIZE (MLP_LAST_SIZE + MLP_FIRST_SIZE)

/* Digits on the GPU. */
struct mlp_digits {
    int count;
    float *pixels;
    unsigned char *label;
};

struct mlp {
    cudaStream_t stream;
    int rows;                             /* digits at once, at most */
    float *weights, *gradient, *velocity; /* MLP_SIZE each */
    float *hidden, *hidden_slope;         /* rows * MLP_HIDDEN: after the ReLU; the loss by it */
    float *slope;                         /* rows * DIGITS_CLASSES: the loss by the scores */
    float *sums;                          /* of the losses, and of digits that were got right */
};

struct mlp_score {
    double loss;     /* mean cross-entropy */
    double accuracy; /* share of the digits whose most likely class is the label */
};

/* Small random weights: the same ones for the same seed. After an error, mlp_destroy frees what is
 * there. */
cudaError_t mlp_create(struct mlp *mlp, int rows, unsigned long long seed, cudaStream_t stream);
void mlp_destroy(struct mlp *mlp);

cudaError_t mlp_upload(const struct mlp *mlp, const struct digits *from, struct mlp_digits *to);
void mlp_free_digits(struct mlp_digits *digits);

/* The digits `first` ... `first` + `count` - 1, through the model. */
cudaError_t mlp_forward(const struct mlp *mlp, const struct mlp_digits *digits, int first,
                        int count);
/* The gradient of their mean loss, by the weights of the last layer, and then of the first. */
cudaError_t mlp_backward_last(const struct mlp *mlp, const struct mlp_digits *digits, int first,
                              int count);
cudaError_t mlp_backward_first(const struct mlp *mlp, const struct mlp_digits *digits, int first,
                               int count);
/* Gradient descent with momentum. */
cudaError_t mlp_step(const struct mlp *mlp, float rate, float momentum);

cudaError_t mlp_score(const struct mlp *mlp, const struct mlp_digits *digits,
                      struct mlp_score *score);

#ifdef __cplusplus
}
#endif
#endif /* MLP_H */
