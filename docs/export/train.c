/* A network of one hidden layer learns the sine, in C alone, with a kernel that fastopt exported:

     fastopt export adam -o adam.c
     cc -O2 train.c -o train -lm && ./train */

#include <stdio.h>

#include "adam.c"

enum { HIDDEN = 16, SAMPLES = 64, STEPS = 2000, PARAMETERS = 3 * HIDDEN + 1 };

/* The parameters lie in one array: weights and biases of the hidden layer, then of the output. */
static float p[PARAMETERS], g[PARAMETERS], m[PARAMETERS], v[PARAMETERS];

/* Compute the mean squared error over all samples, and its gradient. */
static float loss_and_gradient(void) {
    float loss = 0;
    memset(g, 0, sizeof g);
    for (int sample = 0; sample < SAMPLES; ++sample) {
        const float x = 6.2831853f * ((float)sample / (SAMPLES - 1) - 0.5f);
        float hidden[HIDDEN], y = p[3 * HIDDEN];
        for (int k = 0; k < HIDDEN; ++k) {
            hidden[k] = tanhf(p[k] * x + p[HIDDEN + k]);
            y += p[2 * HIDDEN + k] * hidden[k];
        }
        const float error = y - sinf(x), slope = 2 * error / SAMPLES;
        loss += error * error / SAMPLES;
        g[3 * HIDDEN] += slope;
        for (int k = 0; k < HIDDEN; ++k) {
            const float inner = slope * p[2 * HIDDEN + k] * (1 - hidden[k] * hidden[k]);
            g[2 * HIDDEN + k] += slope * hidden[k];
            g[k] += inner * x;
            g[HIDDEN + k] += inner;
        }
    }
    return loss;
}

int main(void) {
    uint32_t word = 1; /* starting weights between -1 and 1 */
    for (int k = 0; k < PARAMETERS; ++k) {
        word = word * 1664525u + 1013904223u;
        p[k] = (float)(word >> 8) / 8388608.0f - 1.0f;
    }
    for (int t = 1; t <= STEPS; ++t) {
        const float loss = loss_and_gradient();
        if (t == 1 || t % 500 == 0) printf("step %d loss %.6f\n", t, loss);
        const double lr = 0.01 * (1.0 - (t - 1.0) / STEPS); /* a schedule of one's own */
        adam_pf32_gf32_mf32_vf32_scalars scalars;
        adam_pf32_gf32_mf32_vf32_scalars_at(t, lr, &scalars);
        adam_pf32_gf32_mf32_vf32(PARAMETERS, p, g, m, v, &scalars);
    }
    return 0;
}
