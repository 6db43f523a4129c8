/* SPDX-License-Identifier: MIT */
/* Softmax regression on digits: one layer, trained by gradient descent. It knows of no other rank. */
#ifndef SOFTMAX_H
#define SOFTMAX_H

#include "digits.h"

/* Of each class the weights of the pixels, then the bias: one array, so that one all-reduce and one
 * average serve the whole model. */
#define SOFTMAX_ROW (DIGITS_PIXELS + 1)
#define SOFTMAX_SIZE (DIGITS_CLASSES * SOFTMAX_ROW)

struct softmax_score {
    double loss;     /* mean cross-entropy */
    double accuracy; /* share of the pictures whose most likely class is the label */
};

/* Small random weights: the same ones for the same seed. */
void softmax_init(float *weights, uint64_t seed);

/* The gradient of the mean loss over the pictures `first` ... `first` + `count` - 1. */
void softmax_gradient(const float *weights, const struct digits *digits, size_t first, size_t count,
                      float *gradient);

/* weights -= rate * gradient */
void softmax_step(float *weights, const float *gradient, float rate);

struct softmax_score softmax_score(const float *weights, const struct digits *digits);

#endif /* SOFTMAX_H */
