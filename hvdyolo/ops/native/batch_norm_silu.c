/* Batch norm and SiLU in one, forward and backward, for activations whose channels are last.
 *
 * With z = scale x + shift for each channel, scale = weight / s, shift = bias - mean scale and s = sqrt(variance + eps):
 *
 *     y = z sigmoid(z)
 *     dL/dz = dL/dy sigmoid(z) (1 + z (1 - sigmoid(z)))
 *     dL/dx = scale (dL/dz - mean(dL/dz) - u mean(u dL/dz)),  u = (x - mean) / s
 *
 * An activation is `rows` times `channels` values, in single precision or bfloat16; what there is of each channel is
 * in single precision. Sums are made over pieces of a fixed length in single precision, and over pieces in order in
 * double precision, so that the number of threads changes no bit.
 *
 * setup.py compiles this once for each kind of processor; batch_norm_silu.py calls the two functions at the end, and sees
 * to their arguments.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
  PIECE = 32768,        /* values, about: what a thread takes at a time; 128 KiB of an L2 cache */
  SHORTEST_PERIOD = 128 /* values: a loop over 16 channels would be mostly its own beginning and end */
};

typedef uint16_t bfloat16;

static inline float single(bfloat16 value) {
  uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

/* To the nearest, ties to even; what is not a number stays so. */
static inline bfloat16 rounded(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return value == value ? (bfloat16)bits : (bfloat16)0x7fc0u;
}

/* 1 / (1 + exp(-x)), off by 3e-7 of itself at most. exp(-x) = 2^n exp(r) with |r| <= ln 2 / 2, by Taylor's series.
 * Beyond 87 the power of two would leave its range; what is cut off there is less than 2e-38. */
static inline float sigmoid(float x) {
  float t = 87.0f < x ? 87.0f : x; /* a NaN passes: comparisons with it are false */
  t = -87.0f > t ? 87.0f : -t;
  const float to_integer = 0x1.8p23f; /* added, it leaves no bit for a fraction: rounds where SSE2 has no rounding */
  float n = (t * 1.44269504f + to_integer) - to_integer;
  float r = t - n * 0.693359375f; /* ln 2 in two parts, the first of 9 bits: its multiples are exact */
  r = r + n * 2.12194440e-4f;
  float e = 1.0f / 120 + r * (1.0f / 720);
  e = 1.0f / 24 + r * e;
  e = 1.0f / 6 + r * e;
  e = 1.0f / 2 + r * e;
  e = 1.0f + r * e;
  e = 1.0f + r * e;
  uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return 1.0f / (1.0f + e * power);
}

/* The sums of what is `period` long, for each of `channels`. */
static void fold(const float *restrict sums, long channels, long period, double *restrict into) {
  for (long c = 0; c < channels; c++) into[c] = 0;
  for (long i = 0; i < period; i += channels)
    for (long c = 0; c < channels; c++) into[c] += sums[i + c];
}

#define VALUE float
#define LOAD(value) (value)
#define STORE(value) (value)
#define NAMED(name) name##_float
#include "batch_norm_silu_pieces.h"
#undef VALUE
#undef LOAD
#undef STORE
#undef NAMED

#define VALUE bfloat16
#define LOAD(value) single(value)
#define STORE(value) rounded(value)
#define NAMED(name) name##_bfloat16
#include "batch_norm_silu_pieces.h"

/* `values` of `channels`, over and over until there are `period` of them. */
static void repeat(float *into, const float *values, long channels, long period) {
  for (long i = 0; i < period; i += channels) memcpy(into + i, values, channels * sizeof *values);
}

static long period_of(long channels) { return channels * ((SHORTEST_PERIOD + channels - 1) / channels); }

static long smaller(long a, long b) { return a < b ? a : b; }

/* The sums over pieces, [pieces][2][channels], added up into the first of them. */
static void add_up(double *sums, long pieces, long channels) {
  for (long piece = 1; piece < pieces; piece++)
    for (long i = 0; i < 2 * channels; i++) sums[i] += sums[piece * 2 * channels + i];
}

/* Of rows from everywhere: neighbours are alike, and one may lie far from all others. */
static void mean_of_some(const void *x, int is_bfloat16, long rows, long channels, float *mean) {
  const long some = smaller(rows, 16);
  for (long c = 0; c < channels; c++) mean[c] = 0;
  for (long i = 0; i < some; i++) {
    const long start = (2 * i + 1) * rows / (2 * some) * channels;
    for (long c = 0; c < channels; c++)
      mean[c] += (is_bfloat16 ? single(((const bfloat16 *)x)[start + c]) : ((const float *)x)[start + c]) / some;
  }
}

/* Training's forward pass. `statistics` (4, channels) gets mean, 1 / s, scale and shift; the running statistics move
 * by `momentum`, the variance without bias. Returns 0, or -1 where there is no memory. */
int batch_norm_silu_forward(const void *x, void *y, const float *weight, const float *bias, float *running_mean,
                            float *running_variance, float *statistics, long rows, long channels, double momentum,
                            double eps, int is_bfloat16, int threads) {
  const long values = rows * channels, period = period_of(channels);
  const long length = period * (period < PIECE ? PIECE / period : 1), pieces = (values + length - 1) / length;
  float *repeated = malloc(2 * period * sizeof *repeated);
  double *sums = malloc(pieces * 2 * channels * sizeof *sums);
  if (!repeated || !sums) {
    free(repeated);
    free(sums);
    return -1;
  }
  float *mean = statistics, *inverse = mean + channels, *scale = inverse + channels, *shift = scale + channels;

  /* Differences from about the mean: squares of values far from zero would drown their variance. */
  mean_of_some(x, is_bfloat16, rows, channels, mean);
  repeat(repeated, mean, channels, period);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < pieces; piece++) {
    long start = piece * length, n = smaller(length, values - start);
    double *into = sums + piece * 2 * channels;
    if (is_bfloat16)
      moments_bfloat16((const bfloat16 *)x + start, n, repeated, channels, period, into);
    else
      moments_float((const float *)x + start, n, repeated, channels, period, into);
  }
  add_up(sums, pieces, channels);

  for (long c = 0; c < channels; c++) {
    double difference = sums[c] / rows, variance = sums[channels + c] / rows - difference * difference;
    if (variance < 0) variance = 0;
    double exact_mean = mean[c] + difference, exact_inverse = 1 / sqrt(variance + eps);
    mean[c] = exact_mean;
    inverse[c] = exact_inverse;
    scale[c] = weight[c] * exact_inverse;
    shift[c] = bias[c] - exact_mean * weight[c] * exact_inverse;
    running_mean[c] += momentum * (exact_mean - running_mean[c]);
    running_variance[c] += momentum * (variance * rows / (rows - 1) - running_variance[c]);
  }

  repeat(repeated, scale, channels, period);
  repeat(repeated + period, shift, channels, period);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = pieces - 1; piece >= 0; piece--) { /* begins with what a cache still holds */
    long start = piece * length, n = smaller(length, values - start);
    if (is_bfloat16)
      output_bfloat16((const bfloat16 *)x + start, (bfloat16 *)y + start, n, repeated, repeated + period, period);
    else
      output_float((const float *)x + start, (float *)y + start, n, repeated, repeated + period, period);
  }
  free(repeated);
  free(sums);
  return 0;
}

/* The gradients of x, weight and bias from that of y, whose rows are `y_stride` values apart (a part of the channels
 * of a larger tensor, say). Returns 0, or -1 where there is no memory. */
int batch_norm_silu_backward(const void *x, const void *y_gradient, long y_stride, void *x_gradient,
                             float *weight_gradient, float *bias_gradient, const float *statistics, long rows,
                             long channels, int is_bfloat16, int threads) {
  const long period = period_of(channels);
  const long length = period / channels * (period < PIECE ? PIECE / period : 1); /* in rows */
  const long pieces = (rows + length - 1) / length;
  float *repeated = malloc(3 * period * sizeof *repeated), *factors = malloc(3 * channels * sizeof *factors);
  double *sums = malloc(pieces * 2 * channels * sizeof *sums);
  if (!repeated || !factors || !sums) {
    free(repeated);
    free(factors);
    free(sums);
    return -1;
  }
  const float *mean = statistics, *inverse = mean + channels, *scale = inverse + channels, *shift = scale + channels;

  /* The gradient of z takes the place of that of x for the while. */
  const long step = y_stride == channels ? period : channels;
  const long y_step = y_stride == channels ? period : y_stride;
  repeat(repeated, scale, channels, step);
  repeat(repeated + step, shift, channels, step);
  repeat(repeated + 2 * step, mean, channels, step);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = 0; piece < pieces; piece++) {
    long start = piece * length, n = smaller(length, rows - start) * channels;
    double *into = sums + piece * 2 * channels;
    if (is_bfloat16)
      z_gradient_bfloat16((const bfloat16 *)x + start * channels, (const bfloat16 *)y_gradient + start * y_stride,
                          (bfloat16 *)x_gradient + start * channels, n, repeated, channels, step, y_step, into);
    else
      z_gradient_float((const float *)x + start * channels, (const float *)y_gradient + start * y_stride,
                       (float *)x_gradient + start * channels, n, repeated, channels, step, y_step, into);
  }
  add_up(sums, pieces, channels);

  float *of_z = factors, *of_x = of_z + channels, *constant = of_x + channels;
  for (long c = 0; c < channels; c++) {
    double sum = sums[c], sum_u = sums[channels + c] * inverse[c];
    bias_gradient[c] = sum;
    weight_gradient[c] = sum_u;
    of_z[c] = scale[c];
    of_x[c] = -scale[c] * inverse[c] * sum_u / rows;
    constant[c] = -scale[c] * sum / rows + scale[c] * inverse[c] * sum_u / rows * mean[c];
  }

  for (long i = 0; i < 3; i++) repeat(repeated + i * period, factors + i * channels, channels, period);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long piece = pieces - 1; piece >= 0; piece--) {
    long start = piece * length * channels, n = smaller(length * channels, rows * channels - start);
    if (is_bfloat16)
      x_gradient_bfloat16((const bfloat16 *)x + start, (bfloat16 *)x_gradient + start, n, repeated, period);
    else
      x_gradient_float((const float *)x + start, (float *)x_gradient + start, n, repeated, period);
  }
  free(repeated);
  free(factors);
  free(sums);
  return 0;
}
