/* SPDX-License-Identifier: MIT */
#include "softmax.h"

#include <math.h>
#include <string.h>

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void softmax_init(float *weights, uint64_t seed)
{
    /* The upper 24 bits fill a float's mantissa: from -0.01 to 0.01. */
    for (int i = 0; i < SOFTMAX_SIZE; i++)
        weights[i] = ((float)(next_random(&seed) >> 40) / 8388608.0f - 1.0f) * 0.01f;
}

/* Replaces the scores by probabilities; returns the logarithm of what they were divided by. */
static float normalise(float *score)
{
    float largest = score[0], sum = 0.0f;

    for (int c = 1; c < DIGITS_CLASSES; c++)
        largest = fmaxf(largest, score[c]);
    for (int c = 0; c < DIGITS_CLASSES; c++) {
        score[c] = expf(score[c] - largest); /* at most 1: it can't overflow */
        sum += score[c];
    }
    for (int c = 0; c < DIGITS_CLASSES; c++)
        score[c] /= sum;
    return largest + logf(sum);
}

static void scores_of(const float *weights, const float *pixels, float *score)
{
    for (int c = 0; c < DIGITS_CLASSES; c++) {
        const float *row = weights + c * SOFTMAX_ROW;
        score[c] = row[DIGITS_PIXELS];
        for (int i = 0; i < DIGITS_PIXELS; i++)
            score[c] += row[i] * pixels[i];
    }
}

void softmax_gradient(const float *weights, const struct digits *digits, size_t first, size_t count,
                      float *gradient)
{
    memset(gradient, 0, SOFTMAX_SIZE * sizeof *gradient);
    for (size_t n = first; n < first + count; n++) {
        const float *pixels = digits->pixels + n * DIGITS_PIXELS;
        float slope[DIGITS_CLASSES];
        scores_of(weights, pixels, slope);
        normalise(slope);
        slope[digits->label[n]] -= 1.0f;
        for (int c = 0; c < DIGITS_CLASSES; c++) {
            float *row = gradient + c * SOFTMAX_ROW;
            slope[c] /= (float)count;
            for (int i = 0; i < DIGITS_PIXELS; i++)
                row[i] += slope[c] * pixels[i];
            row[DIGITS_PIXELS] += slope[c];
        }
    }
}

void softmax_step(float *weights, const float *gradient, float rate)
{
    for (int i = 0; i < SOFTMAX_SIZE; i++)
        weights[i] -= rate * gradient[i];
}

struct softmax_score softmax_score(const float *weights, const struct digits *digits)
{
    struct softmax_score total = {0, 0};

    for (size_t n = 0; n < digits->count; n++) {
        float score[DIGITS_CLASSES];
        int likely = 0;
        scores_of(weights, digits->pixels + n * DIGITS_PIXELS, score);
        for (int c = 1; c < DIGITS_CLASSES; c++)
            if (score[c] > score[likely]) likely = c;
        const float own = score[digits->label[n]];
        total.loss += (double)(normalise(score) - own);
        total.accuracy += likely == digits->label[n];
    }
    total.loss /= (double)digits->count;
    total.accuracy /= (double)digits->count;
    return total;
}
