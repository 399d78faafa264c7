/* What batch_norm_silu.c does with one piece of an activation, for one type of its values. Included there once for
 * each type, which is why there is no guard.
 *
 * A piece begins with the first channel. What there is of each channel comes repeated, `period` values long. */

/* Sums of the differences from `origin`, and of their squares: into (2, channels). */
static void NAMED(moments)(const VALUE *restrict x, long n, const float *restrict origin, long channels, long period,
                           double *restrict into) {
  float sum[period], square[period];
  for (long j = 0; j < period; j++) sum[j] = square[j] = 0;
  for (long i = 0; i < n; i += period) {
    const long length = n - i < period ? n - i : period;
    for (long j = 0; j < length; j++) {
      float difference = LOAD(x[i + j]) - origin[j];
      sum[j] += difference;
      square[j] += difference * difference;
    }
  }
  fold(sum, channels, period, into);
  fold(square, channels, period, into + channels);
}

static void NAMED(output)(const VALUE *restrict x, VALUE *restrict y, long n, const float *restrict scale,
                          const float *restrict shift, long period) {
  for (long i = 0; i < n; i += period) {
    const long length = n - i < period ? n - i : period;
    for (long j = 0; j < length; j++) {
      float z = LOAD(x[i + j]) * scale[j] + shift[j];
      y[i + j] = STORE(z * sigmoid(z));
    }
  }
}

/* The gradient of z, its sum, and its sum times x - mean: into (2, channels). `scale` is followed by shift and mean;
 * that of y goes on by `y_step` values where x goes on by `period`. */
static void NAMED(z_gradient)(const VALUE *restrict x, const VALUE *restrict of_y, VALUE *restrict of_z, long n,
                              const float *restrict scale, long channels, long period, long y_step,
                              double *restrict into) {
  const float *restrict shift = scale + period, *restrict mean = shift + period;
  float sum[period], product[period];
  for (long j = 0; j < period; j++) sum[j] = product[j] = 0;
  for (long i = 0; i < n; i += period, of_y += y_step) {
    const long length = n - i < period ? n - i : period;
    for (long j = 0; j < length; j++) {
      float value = LOAD(x[i + j]), z = value * scale[j] + shift[j], s = sigmoid(z);
      float gradient = LOAD(of_y[j]) * s * (1.0f + z * (1.0f - s));
      of_z[i + j] = STORE(gradient);
      sum[j] += gradient;
      product[j] += gradient * (value - mean[j]);
    }
  }
  fold(sum, channels, period, into);
  fold(product, channels, period, into + channels);
}

/* In place of the gradient of z. `of_z` is followed by the factors of x and the constants. */
static void NAMED(x_gradient)(const VALUE *restrict x, VALUE *restrict gradient, long n, const float *restrict of_z,
                              long period) {
  const float *restrict of_x = of_z + period, *restrict constant = of_x + period;
  for (long i = 0; i < n; i += period) {
    const long length = n - i < period ? n - i : period;
    for (long j = 0; j < length; j++)
      gradient[i + j] = STORE(LOAD(gradient[i + j]) * of_z[j] + LOAD(x[i + j]) * of_x[j] + constant[j]);
  }
}
